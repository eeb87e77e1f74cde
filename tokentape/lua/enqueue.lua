-- enqueue(job id, deadline_at_ms or 0, timeout_ms, field, value, …): once among the open jobs, a job is not enqueued again.
-- KEYS: queue, RQ's job hash, open, RQ's set of queues, bell. -> 1 | 0
if redis.call('ZSCORE', KEYS[3], ARGV[1]) then return 0 end
local deadline = tonumber(ARGV[2])
if deadline == 0 then deadline = now_ms() + tonumber(ARGV[3]) end
redis.call('HSET', KEYS[2], unpack(ARGV, 4))
redis.call('SADD', KEYS[4], KEYS[1])
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[3], text(deadline), ARGV[1])
redis.call('XADD', KEYS[5], 'MAXLEN', 1, '*', 'rung', '1')
return 1
