-- forget(id, before its time too: 1 or 0, RQ's status or '', ended_at, ttl_s, watch_ms or 0): an ended job leaves the open
-- jobs, and takes what the queue side remembers of it along; with watch_ms only later, where its end still stands.
-- RQ's record says with which status, where no run of the job has said so: it ended without one, or a failover put
-- another end in the place of the one that was acknowledged.
-- KEYS: open, ended, owners, deliveries, reasons, lost, delayed, RQ job, RQ's scheduled registry, RQ registry of the status,
--       the two other registries of ended jobs. -> 1 | 0
local due = redis.call('ZSCORE', KEYS[1], ARGV[1])
local now = now_ms()
if not due or (ARGV[2] ~= '1' and tonumber(due) > now) then return 0 end
local watched = ARGV[6] ~= '0'
if watched then
  redis.call('ZADD', KEYS[1], text(now + tonumber(ARGV[6])), ARGV[1])
else
  redis.call('ZREM', KEYS[1], ARGV[1])
end
redis.call('ZADD', KEYS[2], 'NX', text(now), ARGV[1])
-- Its owner acknowledges it.
if redis.call('HEXISTS', KEYS[3], ARGV[1]) == 1 then return 1 end
if not watched then
  for i = 4, 6 do redis.call('HDEL', KEYS[i], ARGV[1]) end
end
redis.call('ZREM', KEYS[7], ARGV[1])
redis.call('ZREM', KEYS[9], ARGV[1])
local status = redis.call('HGET', KEYS[8], 'status')
if status and ARGV[3] ~= '' and status ~= ARGV[3] then
  redis.call('HSET', KEYS[8], 'status', ARGV[3], 'ended_at', ARGV[4])
  redis.call('EXPIRE', KEYS[8], ARGV[5])
  redis.call('ZADD', KEYS[10], math.floor(now / 1000) + tonumber(ARGV[5]), ARGV[1])
  redis.call('ZREM', KEYS[11], ARGV[1])
  redis.call('ZREM', KEYS[12], ARGV[1])
end
return 1
