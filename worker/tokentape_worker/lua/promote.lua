-- promote(id, now as RQ writes it): a delayed job whose time has come goes to the front of its queue. Whoever asks first.
-- KEYS: delayed, queue, suspects, lost, RQ job, RQ's scheduled registry, bell. -> 1 | 0
local due = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not due or tonumber(due) > now_ms() then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[6], ARGV[1])
local suspect = tonumber(redis.call('HGET', KEYS[4], ARGV[1]) or '0') >= 2
redis.call('LPUSH', suspect and KEYS[3] or KEYS[2], ARGV[1])
note(KEYS[5], 'status', 'queued', 'enqueued_at', ARGV[2])
redis.call('XADD', KEYS[7], 'MAXLEN', 1, '*', 'rung', '1')
return 1
