-- putback(worker, id, delivery, reason, delivery to pass or '', now as RQ writes it): to the front of its queue.
-- KEYS: owners, the worker's list, reasons, deliveries, lost, queue, suspects, RQ job, wip, execution, executions,
--       executions of the worker, bell. -> 1 | 0
local worker, delivery = owner_of(KEYS[1], ARGV[2])
if worker ~= ARGV[1] or delivery ~= ARGV[3] then return 0 end
redis.call('LREM', KEYS[2], 0, ARGV[2])
redis.call('HDEL', KEYS[1], ARGV[2])
redis.call('HSET', KEYS[3], ARGV[2], ARGV[4])
if ARGV[5] ~= '' then redis.call('HSET', KEYS[4], ARGV[2], ARGV[5]) end
local suspect = tonumber(redis.call('HGET', KEYS[5], ARGV[2]) or '0') >= 2
redis.call('LPUSH', suspect and KEYS[7] or KEYS[6], ARGV[2])
drop_execution(ARGV[2], ARGV[3], KEYS[9], KEYS[10], KEYS[11], KEYS[12])
note(KEYS[8], 'status', 'queued', 'enqueued_at', ARGV[6], 'worker_name', '')
redis.call('XADD', KEYS[13], 'MAXLEN', 1, '*', 'rung', '1')
return 1
