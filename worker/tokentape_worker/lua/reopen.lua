-- reopen(id, deadline_at_ms, now as RQ writes it): back to the front of the queue, where nobody owns it.
-- KEYS: owners, open, ended, reasons, queue, RQ job, bell. -> 1 | 0
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 0 end
redis.call('HSETNX', KEYS[4], ARGV[1], 'drained')
redis.call('LPUSH', KEYS[5], ARGV[1])
note(KEYS[6], 'status', 'queued', 'enqueued_at', ARGV[3])
redis.call('XADD', KEYS[7], 'MAXLEN', 1, '*', 'rung', '1')
return 1
