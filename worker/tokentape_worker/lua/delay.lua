-- delay(worker, id, delivery, wait_ms, reason): try again later; the slot is free until then.
-- KEYS: owners, the worker's list, reasons, delayed, RQ job, wip, execution, executions, executions of the worker,
--       RQ's scheduled registry, lost, bell. -> 1 | 0
local worker, delivery = owner_of(KEYS[1], ARGV[2])
if worker ~= ARGV[1] or delivery ~= ARGV[3] then return 0 end
redis.call('LREM', KEYS[2], 0, ARGV[2])
redis.call('HDEL', KEYS[1], ARGV[2])
redis.call('HSET', KEYS[3], ARGV[2], ARGV[5])
local due = now_ms() + tonumber(ARGV[4])
redis.call('ZADD', KEYS[4], text(due), ARGV[2])
drop_execution(ARGV[2], ARGV[3], KEYS[6], KEYS[7], KEYS[8], KEYS[9])
note(KEYS[5], 'status', 'scheduled', 'worker_name', '')
redis.call('ZADD', KEYS[10], math.ceil(due / 1000), ARGV[2])
room_again(KEYS[11], ARGV[2], KEYS[12])
return 1
