-- reopen(id, deadline_at_ms, now as RQ writes it, astray 1 | 0): back to the front of the queue, where nobody owns it.
-- KEYS: owners, open, ended, reasons, lost, queue, suspects, RQ job, RQ's registries of ended jobs x 3, bell. -> 1 | 0
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
-- Neither acknowledged nor seen to stand nowhere: it waits in its queue, and only the tapes' clock is behind ours.
if redis.call('ZREM', KEYS[3], ARGV[1]) == 0 and ARGV[4] ~= '1' then return 0 end
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 0 end
redis.call('HSETNX', KEYS[4], ARGV[1], 'drained')
local suspect = tonumber(redis.call('HGET', KEYS[5], ARGV[1]) or '0') >= 2
redis.call('LPUSH', suspect and KEYS[7] or KEYS[6], ARGV[1])
-- Where it was acknowledged, RQ's record was to expire, and stands among the ended.
note(KEYS[8], 'status', 'queued', 'enqueued_at', ARGV[3], 'ended_at', '')
redis.call('PERSIST', KEYS[8])
for i = 9, 11 do redis.call('ZREM', KEYS[i], ARGV[1]) end
redis.call('XADD', KEYS[12], 'MAXLEN', 1, '*', 'rung', '1')
return 1
