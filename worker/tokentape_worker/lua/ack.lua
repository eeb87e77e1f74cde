-- ack(worker, id, delivery, settle_ms, status, ended_at, ttl_s, counter, result field, value, …): the job's tape has ended.
-- KEYS: owners, the worker's list, reasons, open, ended, RQ job, wip, execution, executions, executions of the worker,
--       RQ registry of the status, the two other registries of ended jobs, results, RQ worker, lost, bell.
-- -> 1 | 0
local worker, delivery = owner_of(KEYS[1], ARGV[2])
if worker ~= ARGV[1] or delivery ~= ARGV[3] then return 0 end
redis.call('LREM', KEYS[2], 0, ARGV[2])
redis.call('HDEL', KEYS[1], ARGV[2])
redis.call('HDEL', KEYS[3], ARGV[2])
-- It stays among the open jobs a little longer: an end that a failover lost is noticed by the sweep.
local now = now_ms()
redis.call('ZADD', KEYS[4], text(now + tonumber(ARGV[4])), ARGV[2])
redis.call('ZADD', KEYS[5], text(now), ARGV[2])
drop_execution(ARGV[2], ARGV[3], KEYS[7], KEYS[8], KEYS[9], KEYS[10])
if redis.call('EXISTS', KEYS[6]) == 1 then
  redis.call('HSET', KEYS[6], 'status', ARGV[5], 'ended_at', ARGV[6])
  redis.call('EXPIRE', KEYS[6], ARGV[7])
  -- In this one only: RQ may have given the job up while it ran, or it ended otherwise before its end was lost.
  redis.call('ZREM', KEYS[12], ARGV[2])
  redis.call('ZREM', KEYS[13], ARGV[2])
  redis.call('ZADD', KEYS[11], math.floor(now / 1000) + tonumber(ARGV[7]), ARGV[2])
  redis.call('XADD', KEYS[14], 'MAXLEN', 10, '*', unpack(ARGV, 9))
  redis.call('EXPIRE', KEYS[14], ARGV[7])
end
if redis.call('EXISTS', KEYS[15]) == 1 then redis.call('HINCRBY', KEYS[15], ARGV[8], 1) end
room_again(KEYS[16], ARGV[2], KEYS[17])
return 1
