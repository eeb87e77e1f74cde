-- adopt(worker, id, lease_ms, queue index): a stock `rq worker` has popped the job; it becomes its owner before it claims.
-- KEYS: leases, owners, deliveries, reasons, the worker's list. -> {delivery, reason} | {0} where another owner stands
local owner = owner_of(KEYS[2], ARGV[2])
if owner and redis.call('ZSCORE', KEYS[1], owner) then return {0} end
local now = now_ms()
local before = redis.call('HGET', KEYS[3], ARGV[2])
local delivery = text(math.max(now, tonumber(before or '0') + 1))
redis.call('HSET', KEYS[3], ARGV[2], delivery)
redis.call('ZADD', KEYS[1], text(now + tonumber(ARGV[3])), ARGV[1])
redis.call('RPUSH', KEYS[5], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[1] .. '|' .. delivery .. '|' .. ARGV[4])
local reason = redis.call('HGET', KEYS[4], ARGV[2]) or (before and 'worker_lost' or 'submitted')
redis.call('HDEL', KEYS[4], ARGV[2])
return {delivery, reason}
