-- What both scripts begin with: the server's time, the head of the log, and how a transaction is added to it. Their first
-- line, #!lua, makes the server refuse them before they do anything if it takes no writes: a replica, or out of memory.
local head, log, changed = KEYS[1], KEYS[2], KEYS[3]
local token, length = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local state = redis.call('HMGET', head, 'revision', 'token')
local revision, before = tonumber(state[1] or '0'), state[2] or ''

-- Revisions and times are whole numbers below 2^53, which Lua would write with an exponent.
local function whole(number)
    return string.format('%.0f', number)
end

local function text(part)
    return struct.pack('>I4', #part) .. part
end

-- Revision and end of a record that is not over yet.
local function current(record)
    if not record then return nil end
    local at, ends = string.match(record, '^(%d+):(%d+):')
    if ends ~= '0' and tonumber(ends) <= now then return nil end
    return at, ends
end

-- The log comes first: if something else is at its key, nothing is done. An empty author is none.
local function append(parts, author)
    revision = revision + 1
    local fields = {'token', token, 'before', before, 'writes', table.concat(parts)}
    if author ~= '' then
        fields[7], fields[8] = 'author', author
    end
    redis.call('XADD', log, 'MAXLEN', '~', length, whole(revision) .. '-0', unpack(fields))
    redis.call('HSET', head, 'revision', whole(revision), 'token', token)
end
