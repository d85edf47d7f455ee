-- One call of the cache sink: compare the checkpoint, apply a batch, advance the checkpoint. All or nothing.
--
-- KEYS[1] is the checkpoint, the other keys are those that the plan touches.
-- ARGV[1..4]  the checkpoint that must be there: lsn, epoch, generation, part ('' for a field that is absent)
-- ARGV[5..8]  the checkpoint to leave; ARGV[9] the time for `updated_at`
-- ARGV[10]    the plan: a JSON array of numbers, operation after operation; every number is a key's place in KEYS,
--             a value's place in ARGV (0 for none), or a plain number
-- Answers OK, or the four fields that are there instead.
--
-- Nothing may fail after the first write, for Redis takes nothing back. So the first write is a harmless one to the
-- checkpoint: a server that refuses writes (OOM, READONLY, MISCONF) refuses this one. A key of ours that holds another
-- program's value of another type is emptied. Only commands of Redis 6.2; strings are never compared with `<`, which
-- follows the server's locale.

local FIELDS = {'lsn', 'epoch', 'generation', 'part'}
local SET, UNLINK, ADD, REPLACE, NEWEST, REVISE = 1, 2, 3, 4, 5, 6
local FLOAT, TIME = 1, 2
local AT_ONCE = 1000 -- arguments of one ZADD; Lua's stack ends at 8000

local function try(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if not string.find(reply.err, 'WRONGTYPE', 1, true) then error(reply.err, 0) end
  redis.call('UNLINK', key)
  return redis.call(command, key, ...)
end

-- History ------------------------------------------------------------------------------------------------------------

local function skip_string(json, at)
  at = at + 1
  while true do
    at = string.find(json, '["\\]', at)
    if string.byte(json, at) == 34 then return at + 1 end
    at = at + 2
  end
end

-- Where the value that begins at `at` ends. A value is skipped, not parsed: cjson rounds integers and limits nesting.
local function skip_value(json, at)
  local first = string.byte(json, at)
  if first == 34 then return skip_string(json, at) end
  if first ~= 123 and first ~= 91 then return string.find(json, '[,}%]%s]', at) end
  local depth = 0
  repeat
    at = string.find(json, '["{}%[%]]', at)
    local byte = string.byte(json, at)
    if byte == 34 then
      at = skip_string(json, at)
    else
      depth = depth + ((byte == 123 or byte == 91) and 1 or -1)
      at = at + 1
    end
  until depth == 0
  return at
end

-- The columns of a row's JSON: quoted name -> the value's bytes.
local function columns(json)
  local found, at = {}, 2
  while string.byte(json, at) == 34 do
    local name_end = skip_string(json, at)
    local value = string.find(json, '%S', name_end + 1)
    local value_end = skip_value(json, value)
    found[string.sub(json, at, name_end - 1)] = string.sub(json, value, value_end - 1)
    at = string.find(json, '%S', value_end) + 1
  end
  return found
end

local function same_row(member, first, last)
  local readable, found = pcall(columns, member) -- a member that another program wrote may be anything
  if not readable then return false end
  for at = first, last, 2 do
    if found[ARGV[at]] ~= ARGV[at + 1] then return false end
  end
  return true
end

-- The old row's exact JSON is there as a rule. It is not after an ADD COLUMN, or where Postgres did not send all of it.
local function remove(key, old, score, first, last)
  if old > 0 and try('ZREM', key, ARGV[old]) == 1 then return true end
  if first > last then return false end
  local members
  if score > 0 then
    members = try('ZRANGEBYSCORE', key, ARGV[score], ARGV[score])
  else
    members = try('ZRANGE', key, 0, -1)
  end
  for _, member in ipairs(members) do
    if same_row(member, first, last) then
      redis.call('ZREM', key, member)
      return true
    end
  end
  return false
end

local function add(key, limit, expiry, first, last)
  for at = first, last, AT_ONCE do
    try('ZADD', key, unpack(ARGV, at, math.min(at + AT_ONCE - 1, last)))
  end
  redis.call('ZREMRANGEBYRANK', key, 0, -1 - limit)
  redis.call('PEXPIREAT', key, ARGV[expiry])
end

-- Latest: its JSON begins with the order column, `{"id":42,...`, so that the order is read without parsing the row. ----

local function order_of(value, skip)
  return (string.gsub(string.match(value, '^[^,}]*', skip + 1), '"', ''))
end

local function compare_bytes(a, b)
  for at = 1, math.min(#a, #b) do
    local x, y = string.byte(a, at), string.byte(b, at)
    if x ~= y then return x < y and -1 or 1 end
  end
  return #a - #b
end

local function compare_magnitudes(a, b)
  local whole_a, part_a = string.match(a, '^0*(%d*)%.?(%d*)$')
  local whole_b, part_b = string.match(b, '^0*(%d*)%.?(%d*)$')
  if #whole_a ~= #whole_b then return #whole_a - #whole_b end
  local width = math.max(#part_a, #part_b)
  local order = compare_bytes(whole_a, whole_b)
  if order ~= 0 or width == 0 then return order end
  return compare_bytes(part_a .. string.rep('0', width - #part_a), part_b .. string.rep('0', width - #part_b))
end

local function compare_decimals(a, b)
  if #a < 16 and #b < 16 then return tonumber(a) - tonumber(b) end
  local minus_a, minus_b = string.byte(a) == 45, string.byte(b) == 45
  if minus_a ~= minus_b then return minus_a and -1 or 1 end
  if minus_a then return compare_magnitudes(string.sub(b, 2), string.sub(a, 2)) end
  return compare_magnitudes(a, b)
end

-- A day as one number and the time of day in microseconds: both exact, in any year.
local function moment(text)
  local year, month, day, rest = string.match(text, '^(%d+)-(%d%d)-(%d%d)(.*)$')
  local sign = string.sub(text, -3) == ' BC' and -1 or 1
  local hour, minute, second, fraction = string.match(rest, '^ (%d%d):(%d%d):(%d%d)%.?(%d*)')
  local time = 0
  if hour then
    time = ((hour * 60 + minute) * 60 + second) * 1000000 + tonumber(fraction .. string.rep('0', 6 - #fraction))
  end
  return sign * year * 10000 + month * 100 + day, time
end

local function compare_times(a, b)
  local day_a, time_a = moment(a)
  local day_b, time_b = moment(b)
  if day_a ~= day_b then return day_a - day_b end
  return time_a - time_b
end

local SPECIAL = {['-Infinity'] = -1, ['-infinity'] = -1, Infinity = 1, infinity = 1, NaN = 2}

-- Negative, zero or positive, as a is before, with or after b in Postgres's order.
local function compare(kind, a, b)
  if a == b then return 0 end
  local special_a, special_b = SPECIAL[a], SPECIAL[b]
  if special_a or special_b then return (special_a or 0) - (special_b or 0) end
  if kind == TIME then return compare_times(a, b) end
  if kind == FLOAT then return tonumber(a) - tonumber(b) end
  return compare_decimals(a, b)
end

-- The same for a stored value; one that another program wrote is older than everything.
local function compare_stored(kind, stored, skip, order)
  local readable, sign = pcall(function() return compare(kind, order_of(stored, skip), order) end)
  return readable and sign or -1
end

local function newest(key, kind, skip, expiry, value)
  local stored = try('GET', key)
  if stored and compare_stored(kind, stored, skip, order_of(ARGV[value], skip)) > 0 then return end
  redis.call('SET', key, ARGV[value], 'PXAT', ARGV[expiry])
end

-- A row changed from order `old` to what `value` holds, or is gone (value 0). It never creates the key. If the newest
-- row is gone or moved back, the newest is not known now: the key is removed.
local function revise(key, kind, skip, expiry, value, old)
  local stored = try('GET', key)
  if not stored then return end
  local is_stored = compare_stored(kind, stored, skip, ARGV[old]) == 0
  local is_newest = value > 0 and compare_stored(kind, stored, skip, order_of(ARGV[value], skip)) <= 0
  if is_newest and (is_stored or order_of(ARGV[value], skip) ~= ARGV[old]) then
    redis.call('SET', key, ARGV[value], 'PXAT', ARGV[expiry])
  elseif is_stored then
    redis.call('UNLINK', key)
  end
end

-- The call --------------------------------------------------------------------------------------------------------------

local found = redis.call('HMGET', KEYS[1], unpack(FIELDS))
for at = 1, 4 do
  found[at] = found[at] or ''
end
for at = 1, 4 do
  if found[at] ~= ARGV[at] then return found end
end

redis.call('HSET', KEYS[1], 'updated_at', ARGV[9])

local plan = cjson.decode(ARGV[10])
local at, last = 1, #plan
while at <= last do
  local operation, key = plan[at], KEYS[plan[at + 1]]
  if operation == SET then
    redis.call('SET', key, ARGV[plan[at + 3]], 'PXAT', ARGV[plan[at + 2]])
    at = at + 4
  elseif operation == ADD then
    add(key, plan[at + 2], plan[at + 3], plan[at + 4], plan[at + 5])
    at = at + 6
  elseif operation == NEWEST then
    newest(key, plan[at + 2], plan[at + 3], plan[at + 4], plan[at + 5])
    at = at + 6
  elseif operation == UNLINK then
    redis.call('UNLINK', key)
    at = at + 2
  elseif operation == REVISE then
    revise(key, plan[at + 2], plan[at + 3], plan[at + 4], plan[at + 5], plan[at + 6])
    at = at + 7
  elseif operation == REPLACE then
    -- key, limit, expiry, old member, old score, identity from, to, new score and member from, to, order changed
    local removed = remove(key, plan[at + 4], plan[at + 5], plan[at + 6], plan[at + 7])
    if plan[at + 8] > 0 and (removed or (plan[at + 10] == 1 and redis.call('EXISTS', key) == 1)) then
      add(key, plan[at + 2], plan[at + 3], plan[at + 8], plan[at + 9])
    end
    at = at + 11
  else
    error('the plan holds an unknown operation', 0)
  end
end

for field = 1, 4 do
  local value = ARGV[4 + field]
  if value == '' then
    if found[field] ~= '' then redis.call('HDEL', KEYS[1], FIELDS[field]) end
  elseif value ~= found[field] then
    redis.call('HSET', KEYS[1], FIELDS[field], value)
  end
end
return redis.status_reply('OK')
