-- Deletes what is over, all under one revision; any proxy may run it at any time. KEYS: head, log, changed, then entries
-- and ends of each bucket. ARGV: token, length of the log, the most to delete, the buckets' names.
-- Returns how many were deleted.
local most = tonumber(ARGV[3])
local parts, todo = {}, {}
for bucket = 1, #ARGV - 3 do
    local entries, ends, name = KEYS[2 + 2 * bucket], KEYS[3 + 2 * bucket], ARGV[3 + bucket]
    local left = most - #parts
    if left > 0 then
        for _, key in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', whole(now), 'LIMIT', 0, left)) do
            parts[#parts + 1] = 'd' .. text(name) .. text(key)
            todo[#todo + 1] = {entries, ends, name, key}
        end
    end
end
if #parts == 0 then return 0 end

append(parts, '')
for _, over in ipairs(todo) do
    redis.call('HDEL', over[1], over[4])
    redis.call('ZREM', over[2], over[4])
    redis.call('HSET', changed, over[3], whole(revision))
end
return #parts
