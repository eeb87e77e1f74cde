-- What the queue side's scripts share. An owner record is worker|delivery|queue index.
local function owner_of(owners, id)
  local record = redis.call('HGET', owners, id)
  if not record then return nil end
  local worker, delivery, queue = string.match(record, '^([^|]+)|(%d+)|(%d+)$')
  return worker, delivery, tonumber(queue)
end
-- Take one run of a job out of RQ's books. The id of RQ's execution is the delivery's number.
local function drop_execution(id, delivery, wip, execution, executions, of_worker)
  redis.call('DEL', execution)
  redis.call('ZREM', executions, delivery)
  redis.call('ZREM', wip, id .. ':' .. delivery)
  redis.call('SREM', of_worker, id .. ':' .. delivery)
end
-- RQ's record, where RQ still has it: a hash that was deleted is not made anew from a few fields.
local function note(job, ...)
  if redis.call('EXISTS', job) == 1 then redis.call('HSET', job, ...) end
end
-- A suspect leaves its worker: there is room for the next.
local function room_again(lost, id, bell)
  if redis.call('HEXISTS', lost, id) == 1 then redis.call('XADD', bell, 'MAXLEN', 1, '*', 'rung', '1') end
end
