-- pop(worker, most): move ids from the queues, in their order, into the worker's own list, and record who owns them.
-- KEYS: leases, owners, deliveries, reasons, lost, the worker's list, suspects x 3, queues x 3.
-- -> {'ok', id, delivery, reason, queue index, …} | {'dead'} | {'full'}
local now = now_ms()
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease or tonumber(lease) <= now then return {'dead'} end
-- A write that changes nothing, but that a server whose memory is full refuses: what could not be claimed stays queued.
local refused = redis.pcall('ZADD', KEYS[1], 'XX', lease, ARGV[1])
if type(refused) == 'table' and refused.err then return {'full'} end
local free, out = tonumber(ARGV[2]), {'ok'}

local function take(key, queue)
  while free > 0 do
    local id = redis.call('LPOP', key)
    if not id then return false end
    -- RQ's ids are letters, digits, underscores and dashes; what is none names no job, and is dropped.
    local named = string.find(id, '^[%w_-]+$')
    -- An id whose owner stands in the leases, fresh or not, is a duplicate: only the reaper takes over.
    local owner = owner_of(KEYS[2], id)
    if named and (not owner or not redis.call('ZSCORE', KEYS[1], owner)) then
      local before = redis.call('HGET', KEYS[3], id)
      local delivery = text(math.max(now, tonumber(before or '0') + 1))
      redis.call('HSET', KEYS[3], id, delivery)
      redis.call('HSET', KEYS[2], id, ARGV[1] .. '|' .. delivery .. '|' .. queue)
      redis.call('RPUSH', KEYS[6], id)
      local reason = redis.call('HGET', KEYS[4], id) or (before and 'worker_lost' or 'submitted')
      redis.call('HDEL', KEYS[4], id)
      out[#out + 1] = id
      out[#out + 1] = delivery
      out[#out + 1] = reason
      out[#out + 1] = queue
      free = free - 1
      return true
    end
  end
  return false
end

-- One suspect per worker: a poison job must not take others with it.
local holds = false
if redis.call('HLEN', KEYS[5]) > 0 then
  for _, id in ipairs(redis.call('LRANGE', KEYS[6], 0, -1)) do
    if tonumber(redis.call('HGET', KEYS[5], id) or '0') >= 2 then holds = true break end
  end
end
if not holds then
  for i = 1, 3 do
    if take(KEYS[6 + i], i - 1) then break end
  end
end
for i = 1, 3 do
  while take(KEYS[9 + i], i - 1) do end
end
return out
