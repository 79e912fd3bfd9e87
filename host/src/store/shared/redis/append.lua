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

-- The log comes first: if something else is at its key, nothing is done. No author, or an empty one, is none.
local function append(parts, author)
    revision = revision + 1
    local fields = {'token', token, 'before', before, 'writes', table.concat(parts)}
    if author and author ~= '' then
        fields[7], fields[8] = 'author', author
    end
    redis.call('XADD', log, 'MAXLEN', '~', length, whole(revision) .. '-0', unpack(fields))
    redis.call('HSET', head, 'revision', whole(revision), 'token', token)
end

-- What counts for the limits of a bucket was changed.
local function sized(name)
    redis.call('HSET', changed, 'size:' .. name, whole(revision))
end

-- Deletes what is over, all under one revision: each its bucket's entries, ends and name, and the key.
local function remove(over)
    local parts = {}
    for _, it in ipairs(over) do
        parts[#parts + 1] = 'd' .. text(it[3]) .. text(it[4])
    end
    append(parts)
    for _, it in ipairs(over) do
        redis.call('HDEL', it[1], it[4])
        redis.call('ZREM', it[2], it[4])
        redis.call('HSET', changed, it[3], whole(revision))
        sized(it[3])
    end
end
