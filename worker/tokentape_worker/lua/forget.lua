-- forget(id): an ended job leaves the open jobs, and takes what the queue side remembers of it along.
-- KEYS: open, ended, owners, deliveries, reasons, lost. -> 1 | 0
local due = redis.call('ZSCORE', KEYS[1], ARGV[1])
local now = now_ms()
if not due or tonumber(due) > now then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], 'NX', text(now), ARGV[1])
if redis.call('HEXISTS', KEYS[3], ARGV[1]) == 0 then
  for i = 4, 6 do redis.call('HDEL', KEYS[i], ARGV[1]) end
end
return 1
