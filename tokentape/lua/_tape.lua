-- What the tape's scripts share. KEYS[1] is always the tape; every other key is in its slot.
-- An entry is {id, {'kind', KIND, 'data', JSON}}; ids are <attempt>-<seq>.
local function parse(entry)
  local a, s = string.match(entry[1], '^(%d+)-(%d+)$')
  return tonumber(a), tonumber(s), entry[2][2], entry[2][4]
end
local function last()
  local rows = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  if #rows == 0 then return nil end
  return parse(rows[1])
end
local function at(id)
  local rows = redis.call('XRANGE', KEYS[1], id, id)
  if #rows == 0 then return nil end
  return rows[1][2][4]
end
local function add(attempt, seq, kind, data)
  redis.call('XADD', KEYS[1], string.format('%.0f-%.0f', attempt, seq), 'kind', kind, 'data', data)
end
-- cjson holds 14 digits, so objects are extended as text: every `data` here has at least one field of its own.
local function with(data, fields)
  return '{' .. fields .. ',' .. string.sub(data, 2)
end
local function expire(ms)
  for i = 1, #KEYS do redis.call('PEXPIRE', KEYS[i], ms) end
end
-- Whether an attempt was claimed with this token: one look-up by id, and no JSON parsed.
local function owns(attempt, token)
  local data = at(attempt .. '-0')
  return data and string.find(data, token, 1, true) ~= nil
end
