-- release(worker, 'reap' | 'leave', now as RQ writes it, id, …): put back what a worker owns, then drop its lease.
-- Called without ids first; each answer names the ids for the next call, so that every key is known before it. A reaped
-- worker is condemned by the first call: its lease reads 0, and it can neither renew nor pop while the rest is done.
-- KEYS: leases, owners, reasons, lost, the worker's list, executions of the worker, bell, queues x 3, suspects x 3,
--       wip x 3, then for each id: RQ job, execution, executions.
-- -> {'more', id, delivery, …} | {'done'} | {'alive'} | {'none'}
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease then return {'none'} end
local reap = ARGV[2] == 'reap'
if reap then
  if tonumber(lease) > now_ms() then return {'alive'} end
  redis.call('ZADD', KEYS[1], 0, ARGV[1])
end
for i = 4, #ARGV do
  local id, k = ARGV[i], 17 + (i - 4) * 3
  local worker, delivery, queue = owner_of(KEYS[2], id)
  if redis.call('LREM', KEYS[5], 0, id) > 0 and worker == ARGV[1] then
    redis.call('HDEL', KEYS[2], id)
    local lost = reap and redis.call('HINCRBY', KEYS[4], id, 1) or tonumber(redis.call('HGET', KEYS[4], id) or '0')
    local line = lost >= 2 and KEYS[11 + queue] or KEYS[8 + queue]
    redis.call('LPUSH', line, id)
    redis.call('HSET', KEYS[3], id, reap and 'worker_lost' or 'drained')
    drop_execution(id, delivery, KEYS[14 + queue], KEYS[k + 1], KEYS[k + 2], KEYS[6])
    note(KEYS[k], 'status', 'queued', 'enqueued_at', ARGV[3], 'worker_name', '')
  end
end
if #ARGV >= 4 then redis.call('XADD', KEYS[7], 'MAXLEN', 1, '*', 'rung', '1') end
-- From the tail, so that the oldest is pushed last and stands first.
local rest = redis.call('LRANGE', KEYS[5], -200, -1)
if #rest == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('DEL', KEYS[6])
  return {'done'}
end
local out = {'more'}
for i = #rest, 1, -1 do
  local _, delivery = owner_of(KEYS[2], rest[i])
  out[#out + 1] = rest[i]
  out[#out + 1] = delivery or '0'
end
return out
