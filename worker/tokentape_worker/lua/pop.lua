-- pop(worker, most, alone_after): move ids from the queues, in their order, into the worker's own list, and record who
-- owns them. A suspect that was lost `alone_after` times or more stands beside no other suspect.
-- KEYS: leases, owners, deliveries, reasons, lost, the worker's list, suspects x 3, queues x 3.
-- -> {'ok', id, delivery, reason, queue index, …} | {'dead'} | {'full'}
local now = now_ms()
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease or tonumber(lease) <= now then return {'dead'} end
-- A write that changes nothing, but that a server whose memory is full refuses: what could not be claimed stays queued.
local refused = redis.pcall('ZADD', KEYS[1], 'XX', lease, ARGV[1])
if type(refused) == 'table' and refused.err then return {'full'} end
local free, out = tonumber(ARGV[2]), {'ok'}

-- Take the first id of a line. -> true, false where it is dropped, nil where the line is empty
local function take(line, queue)
  local id = redis.call('LPOP', line)
  if not id then return nil end
  -- RQ's ids are letters, digits, underscores and dashes; what is none names no job.
  if not string.find(id, '^[%w_-]+$') then return false end
  -- An id whose owner stands in the leases, fresh or not, is a duplicate: only the reaper takes over.
  local owner = owner_of(KEYS[2], id)
  if owner and redis.call('ZSCORE', KEYS[1], owner) then return false end
  local before = redis.call('HGET', KEYS[3], id)
  local delivery = text(math.max(now, tonumber(before or '0') + 1))
  redis.call('HSET', KEYS[3], id, delivery)
  redis.call('HSET', KEYS[2], id, ARGV[1] .. '|' .. delivery .. '|' .. queue)
  redis.call('RPUSH', KEYS[6], id)
  local reason = redis.call('HGET', KEYS[4], id) or (before and 'worker_lost' or 'submitted')
  redis.call('HDEL', KEYS[4], id)
  for _, value in ipairs({id, delivery, reason, queue}) do out[#out + 1] = value end
  free = free - 1
  return true
end

local function lost(id)
  return tonumber(redis.call('HGET', KEYS[5], id) or '0')
end

-- How many suspects may run in one worker where this one is among them: half as many after each further loss, so that
-- a poison job soon stands alone, and the innocents of a few crashes in a row need not queue up for a worker each.
local function room(times)
  if times >= tonumber(ARGV[3]) then return 1 end
  return math.max(1, math.floor(128 / 2 ^ times))
end

-- In their order: a suspect that needs more room than there is waits for it, and those behind it wait too.
local function take_suspects()
  local held, least = 0, math.huge
  for _, id in ipairs(redis.call('LRANGE', KEYS[6], 0, -1)) do
    local times = lost(id)
    if times >= 2 then held, least = held + 1, math.min(least, room(times)) end
  end
  for i = 1, 3 do
    while free > 0 do
      local id = redis.call('LINDEX', KEYS[6 + i], 0)
      if not id then break end
      local fits = math.min(least, room(lost(id)))
      if held >= fits then return end
      if take(KEYS[6 + i], i - 1) then held, least = held + 1, fits end
    end
  end
end

if redis.call('EXISTS', KEYS[7], KEYS[8], KEYS[9]) > 0 then take_suspects() end
for i = 1, 3 do
  while free > 0 and take(KEYS[9 + i], i - 1) ~= nil do end
end
return out
