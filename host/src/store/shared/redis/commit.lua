-- One transaction. KEYS: head, log, changed, then entries and ends of each bucket. ARGV: token, length of the log, the
-- numbers of buckets, conditions, writes and buckets whose limits it counts for; the buckets' names; for each condition its
-- kind, bucket, key and revision; for each write its kind, bucket, key, time to live in milliseconds and value; those buckets;
-- who makes it. The time is 0 for what stays, and "as before" for what ends when the entry before it would have.
-- Returns 1 if it was applied and 0 if a condition did not hold, and the revision then.
local buckets, conditions, writes, sizes = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local argument = 6 + buckets

local function entries(bucket) return KEYS[2 + 2 * bucket] end
local function ends(bucket) return KEYS[3 + 2 * bucket] end
local function name(bucket) return ARGV[6 + bucket] end

local all_hold, over = true, {}
for _ = 1, conditions do
    local kind, bucket, key, expected =
        ARGV[argument + 1], tonumber(ARGV[argument + 2]), ARGV[argument + 3], ARGV[argument + 4]
    argument = argument + 4
    local holds
    if kind == 'at' then
        local record = redis.call('HGET', entries(bucket), key)
        local at = current(record)
        holds = (at or '') == expected
        if record and not at and not holds then
            over[#over + 1] = {entries(bucket), ends(bucket), name(bucket), key}
        end
    else
        local field = kind == 'sized' and 'size:' .. name(bucket) or name(bucket)
        holds = tonumber(redis.call('HGET', changed, field) or '0') <= tonumber(expected)
    end
    all_hold = all_hold and holds
end
if not all_hold then
    -- Who expects what is over has not been told that it is: without this, only once somebody has removed it.
    if #over > 0 then remove(over) end
    return {0, whole(revision)}
end

local parts, todo = {}, {}
for _ = 1, writes do
    local kind, bucket, key, ttl, value =
        ARGV[argument + 1], tonumber(ARGV[argument + 2]), ARGV[argument + 3], ARGV[argument + 4], ARGV[argument + 5]
    argument = argument + 5
    if kind == 'set' then
        local over = '0'
        if ttl == 'as before' then
            local _, ends = current(redis.call('HGET', entries(bucket), key))
            over = ends or '0'
        elseif ttl ~= '0' then
            over = whole(now + tonumber(ttl))
        end
        parts[#parts + 1] = 's' .. text(name(bucket)) .. text(key) .. text(over) .. text(value)
        todo[#todo + 1] = {bucket, key, over, value}
    elseif redis.call('HEXISTS', entries(bucket), key) == 1 then
        parts[#parts + 1] = 'd' .. text(name(bucket)) .. text(key)
        todo[#todo + 1] = {bucket, key}
    end
end
if #parts == 0 then return {1, whole(revision)} end

append(parts, ARGV[#ARGV])
for _, write in ipairs(todo) do
    local bucket, key, over, value = write[1], write[2], write[3], write[4]
    if value then
        redis.call('HSET', entries(bucket), key, whole(revision) .. ':' .. over .. ':' .. value)
    else
        redis.call('HDEL', entries(bucket), key)
        sized(name(bucket))
    end
    if over and over ~= '0' then
        redis.call('ZADD', ends(bucket), over, key)
    else
        redis.call('ZREM', ends(bucket), key)
    end
    redis.call('HSET', changed, name(bucket), whole(revision))
end
for index = 1, sizes do
    sized(name(tonumber(ARGV[argument + index])))
end
return {1, whole(revision)}
