-- One transaction. KEYS: head, log, changed, then entries and ends of each bucket. ARGV: token, length of the log, the
-- numbers of buckets, conditions and writes; the buckets' names; for each condition its kind, bucket, key and revision;
-- for each write its kind, bucket, key, time to live in milliseconds and value; who makes it. The time is 0 for what stays,
-- and "as before" for what ends when the entry before it would have.
-- Returns 1 if it was applied and 0 if a condition did not hold, and the revision then.
local buckets, conditions, writes = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local argument = 5 + buckets

local function entries(bucket) return KEYS[2 + 2 * bucket] end
local function ends(bucket) return KEYS[3 + 2 * bucket] end
local function name(bucket) return ARGV[5 + bucket] end

for _ = 1, conditions do
    local kind, bucket, key, expected =
        ARGV[argument + 1], tonumber(ARGV[argument + 2]), ARGV[argument + 3], ARGV[argument + 4]
    argument = argument + 4
    local holds
    if kind == 'at' then
        holds = (current(redis.call('HGET', entries(bucket), key)) or '') == expected
    else
        holds = tonumber(redis.call('HGET', changed, name(bucket)) or '0') <= tonumber(expected)
    end
    if not holds then return {0, whole(revision)} end
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
    end
    if over and over ~= '0' then
        redis.call('ZADD', ends(bucket), over, key)
    else
        redis.call('ZREM', ends(bucket), key)
    end
    redis.call('HSET', changed, name(bucket), whole(revision))
end
return {1, whole(revision)}
