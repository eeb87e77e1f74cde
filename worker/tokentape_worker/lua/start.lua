-- start(worker, id, delivery, now as RQ writes it, now_s, ttl_s): RQ's record says that the job runs here.
-- KEYS: owners, RQ job, wip, execution, executions, executions of the worker. -> {1, RQ's payload} | {0}
local worker, delivery = owner_of(KEYS[1], ARGV[2])
if worker ~= ARGV[1] or delivery ~= ARGV[3] then return {0} end
if redis.call('EXISTS', KEYS[2]) == 0 then return {1} end
local ends = ARGV[5] + ARGV[6]
redis.call('HSET', KEYS[2], 'status', 'started', 'started_at', ARGV[4], 'last_heartbeat', ARGV[4], 'worker_name', ARGV[1])
redis.call('HSET', KEYS[4], 'id', ARGV[3], 'job_id', ARGV[2], 'created_at', ARGV[5], 'last_heartbeat', ARGV[5],
  'worker_name', ARGV[1])
redis.call('EXPIRE', KEYS[4], ARGV[6])
redis.call('ZADD', KEYS[5], ends, ARGV[3])
redis.call('EXPIRE', KEYS[5], ARGV[6])
redis.call('ZADD', KEYS[3], ends, ARGV[2] .. ':' .. ARGV[3])
redis.call('SADD', KEYS[6], ARGV[2] .. ':' .. ARGV[3])
redis.call('EXPIRE', KEYS[6], ARGV[6])
return {1, redis.call('HGET', KEYS[2], 'data')}
