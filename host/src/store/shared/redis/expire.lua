-- Deletes what is over, all under one revision; any proxy may run it at any time. KEYS: head, log, changed, then entries
-- and ends of each bucket. ARGV: token, length of the log, the most to delete, the buckets' names.
-- Returns how many were deleted.
local most = tonumber(ARGV[3])
local over = {}
for bucket = 1, #ARGV - 3 do
    local entries, ends, name = KEYS[2 + 2 * bucket], KEYS[3 + 2 * bucket], ARGV[3 + bucket]
    local left = most - #over
    if left > 0 then
        for _, key in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', whole(now), 'LIMIT', 0, left)) do
            over[#over + 1] = {entries, ends, name, key}
        end
    end
end
if #over > 0 then remove(over) end
return #over
