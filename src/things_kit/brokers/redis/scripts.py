"""What must happen at once at the server, in Lua. Time is the server's, so that the clocks of clients do not matter.

A message that a group was given and has not acknowledged is either pending with a consumer, or put back: then it is a
member of the sorted set of delayed messages, scored by the time it is due (milliseconds), and pending with nobody. A member is
`ID ATTEMPT`, the ID padded with zeros so that members of one score are in the order of the stream. In a consumer's hands the
attempt is the entry's delivery count. The mark of a suspect is in a hash, until it is acknowledged or put back with a verdict.

A message that comes later is in a hash beside the stream, by a number that grows, and that number in a sorted set by the time it is due
(microseconds); the hash also has the numbers of those with a name, behind a colon, and the last number. Whatever looks at the stream
first adds to it what is due, or counts it as if it were there.

How many entries a group has yet to read is counted by Redis from 7.0 on, but wrongly once some of them were trimmed:
what it counts never returns to 0. It is known without counting where the group is at the stream's end, or before its
beginning; a consumer that looks around then sets it right.

Every script adds to one place before it takes from the other: a server without memory may refuse the first.
"""

import hashlib
from typing import Any, Final

from redis.exceptions import NoScriptError

_CARRY: Final = """
local stream = KEYS[1]
local function micros()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
local function words_of(packed)
  local words, from = {}, 1
  while from <= #packed do words[#words + 1], from = struct.unpack('>I4c0', packed, from) end
  return words
end
local function until_due(due)
  local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
  return first[1] and math.max(0, math.ceil((first[2] - micros()) / 1000)) or -1
end
local function carry(due, entries)
  local wait = until_due(due)
  if wait ~= 0 then return wait end
  local moved, gone, bytes, stuck = {}, {}, 0, nil
  for _, number in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', micros(), 'LIMIT', 0, 1000)) do
    local packed = redis.call('HGET', entries, number)
    if packed then
      local words = words_of(packed)
      local name, added = words[1], redis.pcall('XADD', stream, 'NOMKSTREAM', unpack(words, 3))
      if not added or added.err then
        stuck = added and string.sub(added.err, 1, 3) ~= 'OOM' and added or 1000
        break
      end
      gone[#gone + 1] = number
      if name ~= '' and redis.call('HGET', entries, ':' .. name) == number then gone[#gone + 1] = ':' .. name end
      bytes = bytes + #packed
    end
    moved[#moved + 1] = number
    if bytes > 8388608 then break end
  end
  if #moved > 0 then redis.call('ZREM', due, unpack(moved)) end
  if #gone > 0 then redis.call('HDEL', entries, unpack(gone)) end
  wait = until_due(due)
  if wait < 0 then redis.call('DEL', entries) end
  return stuck or wait
end
"""
# What is due beyond a thousand, or 8 MiB, is carried by the next look: a server does nothing else meanwhile. Without memory, or without a
# stream, it waits, and nobody is kept from taking what is there. Returns the milliseconds until more is due, -1 for never, or an error.

_COMMON: Final = (
    _CARRY
    + """
local delayed, group, consumer = KEYS[2], ARGV[1], ARGV[2]
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function padded(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  return string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #seq) .. seq
end
local function parts(member)
  local ms, seq, attempt = string.match(member, '^0*(%d+)%-0*(%d+) (%d+)$')
  return ms and (ms .. '-' .. seq), attempt
end
local function put_back(id, attempt, delay)
  local due = now()
  if delay > 0 then
    due = due + delay
  else -- what need not wait comes in the order of the stream
    due = math.min(due, tonumber(string.match(id, '^%d+')))
  end
  redis.call('ZADD', delayed, string.format('%.0f', due), padded(id) .. ' ' .. attempt)
end
local function named(flat)
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end
local function its_group()
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local found = named(flat)
    if found.name == group then return found end
  end
end
local function unread_for_sure(found)
  local whole = named(redis.call('XINFO', 'STREAM', stream))
  local last = padded(found['last-delivered-id'])
  local unread
  if whole.length == 0 or last >= padded(whole['last-generated-id']) then
    unread = 0
  elseif last < padded(whole['first-entry'][1]) then
    unread = whole.length
  end
  return unread, unread and whole['entries-added'] and whole['entries-added'] - unread
end
"""
)


class Script:
    """A script and its digest, by which the server knows it once it has seen it."""

    def __init__(self, body: str, common: str = _COMMON) -> None:
        self._text = (common + body).encode()
        self.digest = hashlib.sha1(self._text, usedforsecurity=False).hexdigest()

    def command(self, keys: tuple[str, ...], *arguments: Any) -> list[Any]:
        """It as a command that no server refuses, for a pipeline."""
        return ["EVAL", self._text, len(keys), *keys, *arguments]

    async def __call__(self, client: Any, keys: tuple[str, ...], *arguments: Any) -> Any:
        """Run it. Raises the client's errors."""
        call = (len(keys), *keys, *arguments)
        try:
            return await client.execute_command("EVALSHA", self.digest, *call)
        except NoScriptError:
            return await client.execute_command("EVAL", self._text, *call)


DECLARE: Final = Script("""
if redis.call('EXISTS', stream) == 0 then -- a stream without entries is what a group leaves that is made and destroyed
  redis.call('XGROUP', 'CREATE', stream, 'things-kit', '0', 'MKSTREAM')
  redis.call('XGROUP', 'DESTROY', stream, 'things-kit')
end
return redis.call('XLEN', stream) -- an error if it is no stream
""")
"""Create a stream. Keys: the stream."""


JOIN: Final = Script("""
local start, create = ARGV[2], ARGV[3]
local there = redis.call('EXISTS', stream) == 1
if create == '0' and not there then return {'topic'} end
if there then -- what is due is older than the group
  local next = carry(KEYS[4], KEYS[5])
  if type(next) == 'table' then return next end
end
if create == '1' then
  local made = redis.pcall('XGROUP', 'CREATE', stream, group, start, 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
  if not made.err then
    redis.call('DEL', KEYS[3])
    for i = 4, #ARGV do put_back(ARGV[i], 1, 0) end
  end
end
local found = its_group()
if found then return {'joined', found['last-delivered-id']} end
return {'group'}
""")
"""Create a group where it is missing, or say what is missing. Arguments: group, where it starts, 1 to create, and what it is
to get again if it is created here. Returns what is missing, or `joined` and the last ID that the group was given."""


SWEEP: Final = Script("""
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local found = named(flat)
  if string.sub(found.name, 1, #consumer) == consumer and found.pending == 0 and found.idle > tonumber(ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, found.name)
  end
end
""")
"""Delete consumers that have long had nothing. Arguments: group, how our consumers' names begin, idle milliseconds."""


TAKE: Final = Script("""
local lease, limit, cursor = ARGV[3], tonumber(ARGV[4]), ARGV[5]
local next = carry(KEYS[4], KEYS[5])
if type(next) == 'table' then return next end
local found, read, _ = its_group()
if found then _, read = unread_for_sure(found) end
if read and found['entries-read'] ~= read then -- some were trimmed unread; and if we may not say so, it stays wrong
  redis.pcall('XGROUP', 'SETID', stream, group, found['last-delivered-id'], 'ENTRIESREAD', read)
end
local taken = {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now(), 'LIMIT', 0, limit)) do
  local id, attempt = parts(member)
  if id then
    local claimed = redis.call('XCLAIM', stream, group, consumer, 0, id, 'FORCE', 'RETRYCOUNT', attempt)
    if claimed[1] then
      taken[#taken + 1] = {id, claimed[1][2], tonumber(attempt), 1}
    else -- it was deleted from the stream
      redis.call('XACK', stream, group, id)
    end
  end
  redis.call('ZREM', delayed, member)
end
if #taken < limit then
  local swept = redis.call('XAUTOCLAIM', stream, group, consumer, lease, cursor, 'COUNT', limit - #taken)
  cursor = swept[1]
  for _, entry in ipairs(swept[2]) do
    if entry then
      local pending = redis.call('XPENDING', stream, group, entry[1], entry[1], 1)
      taken[#taken + 1] = {entry[1], entry[2], pending[1][4], 0}
    end
  end
end
for _, entry in ipairs(taken) do
  entry[5] = tonumber(redis.call('HGET', KEYS[3], entry[1]) or 0)
end
local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
return {taken, cursor, first[2] and math.max(0, first[2] - now()) or -1, next}
""")
"""Take what is due, then what lies idle with others. Arguments: group, consumer, lease in milliseconds, limit, cursor.
Returns entries with their attempts, whether they had been put back, and their marks; the next cursor, and the milliseconds until more that was put
back is due, and more that was scheduled, -1 for never. Where Redis cannot be right about what the group has read, it is told so."""


RELEASE: Final = Script("""
for i = 3, #ARGV, 3 do
  local id = ARGV[i]
  if redis.call('XPENDING', stream, group, id, id, 1, consumer)[1] then -- else somebody else has it
    put_back(id, ARGV[i + 2], tonumber(ARGV[i + 1]))
    redis.call('XACK', stream, group, id)
    redis.call('HDEL', KEYS[3], id)
  end
end
""")
"""Put entries back. Arguments: group, consumer, and for each entry its ID, its delay in milliseconds, its next attempt."""


MARK: Final = Script("""
local id, suspect = ARGV[3], tonumber(ARGV[4])
if suspect == 0 then
  redis.call('HDEL', KEYS[3], id)
elseif redis.call('XPENDING', stream, group, id, id, 1, consumer)[1] then -- else somebody else has it
  redis.call('HSET', KEYS[3], id, suspect)
end
""")
"""Mark an entry as a suspect. Arguments: group, consumer, its ID, its attempt or 0 for no mark."""


EXTEND: Final = Script("""
local start = '-'
while true do
  local pending = redis.call('XPENDING', stream, group, start, '+', 1000, consumer)
  if #pending == 0 then return end
  local claim = {}
  for i, entry in ipairs(pending) do claim[i] = entry[1] end
  start = '(' .. claim[#claim]
  claim[#claim + 1] = 'JUSTID' -- which leaves the delivery count alone
  redis.call('XCLAIM', stream, group, consumer, 0, unpack(claim))
end
""")
"""Begin the lease of all anew that a consumer has, and of nothing that others have. Arguments: group, consumer."""


LEAVE: Final = Script("""
while true do
  local pending = redis.call('XPENDING', stream, group, '-', '+', 1000, consumer)
  if #pending == 0 then break end
  for _, entry in ipairs(pending) do
    put_back(entry[1], entry[4], 0)
    redis.call('XACK', stream, group, entry[1])
  end
end
redis.call('XGROUP', 'DELCONSUMER', stream, group, consumer) -- which would lose what is pending
""")
"""Put back all that a consumer has, and delete the consumer. Arguments: group, consumer."""


LAG: Final = Script("""
if redis.call('EXISTS', stream) == 0 then return {0, ''} end
local cursor = ARGV[2]
local found = its_group()
local due = cursor == '' and redis.call('ZCOUNT', KEYS[4], '-inf', micros()) or 0
if not found then return {redis.call('XLEN', stream) + due, ''} end
local lag = due
if cursor == '' then
  lag = lag + found.pending + redis.call('ZCARD', delayed)
  local unread = unread_for_sure(found) or found.lag
  if unread then return {lag + unread, ''} end
  cursor = found['last-delivered-id']
end
for _ = 1, 10 do -- Redis lost count: entries were deleted, the group began in the middle, or it is older than 7
  local page = redis.call('XRANGE', stream, '(' .. cursor, '+', 'COUNT', 1000)
  lag = lag + #page
  if #page < 1000 then return {lag, ''} end
  cursor = page[#page][1]
end
return {lag, cursor}
""")
"""Count what a group has not acknowledged. Arguments: group, cursor. Returns a count, and where to go on counting."""


OVERDUE: Final = Script("""
local found = its_group()
if not found then return 0 end
local unread = unread_for_sure(found) or found.lag
return unread and unread + redis.call('ZCOUNT', delayed, '-inf', now()) + redis.call('ZCOUNT', KEYS[4], '-inf', micros()) or -1
""")
"""Count what is ready and with nobody, -1 where Redis has lost count. Arguments: group."""


TRIM: Final = Script("""
local function smaller(a, b) return padded(a) < padded(b) and a or b end
local floor, known = ARGV[1], {}
for i = 2, #ARGV do known[ARGV[i]] = true end
local groups = redis.call('XINFO', 'GROUPS', stream)
if #groups == 0 then return 0 end
for _, flat in ipairs(groups) do
  local found = named(flat)
  if not known[found.name] then return 0 end -- it came just now, and what it put back is unknown
  floor = smaller(floor, found['last-delivered-id'])
  local pending = redis.call('XPENDING', stream, found.name)
  if pending[1] > 0 then floor = smaller(floor, pending[2]) end
end
for i = 2, #KEYS do
  if redis.call('ZCARD', KEYS[i]) > 10000 then return 0 end -- looking through more takes too long
  for _, member in ipairs(redis.call('ZRANGE', KEYS[i], 0, -1)) do
    local id = parts(member)
    if id then floor = smaller(floor, id) end
  end
end
return redis.call('XTRIM', stream, 'MINID', '~', floor)
""")
"""Delete what is old and acknowledged by every group. Keys: the stream, and every group's delayed messages. Arguments: the
first ID that is not old, and every group."""


CARRY: Final = Script("return carry(KEYS[2], KEYS[3])", _CARRY)
"""Add what is due to the stream. Returns the milliseconds until more is due, -1 for never."""


PUBLISH: Final = Script(
    """
carry(KEYS[2], KEYS[3]) -- what came of it is the receivers' to say, who do it too
return redis.pcall('XADD', stream, 'NOMKSTREAM', unpack(ARGV))
""",
    _CARRY,
)
"""Add an entry behind what is due. Arguments: the words of its XADD."""


SCHEDULE: Final = Script(
    """
local due, entries = KEYS[2], KEYS[3]
if redis.call('XLEN', stream) == 0 and redis.call('EXISTS', stream) == 0 then return false end
local now = micros()
for i = 1, #ARGV, 3 do
  local number, name = string.format('%016d', redis.call('HINCRBY', entries, 'last', 1)), ARGV[i + 1]
  redis.call('HSET', entries, number, ARGV[i + 2])
  redis.call('ZADD', due, string.format('%.0f', math.max(now, ARGV[i])), number)
  if name ~= '' then
    local before = redis.call('HGET', entries, ':' .. name)
    redis.call('HSET', entries, ':' .. name, number)
    local score = before and redis.call('ZSCORE', due, before)
    if score and tonumber(score) > now then -- else it is due, and comes
      redis.call('ZREM', due, before)
      redis.call('HDEL', entries, before)
    end
  end
end
return carry(due, entries)
""",
    _CARRY,
)
"""Keep messages until they are due. Arguments: for each the microseconds since 1970 at which it is, its name or nothing, and what it is
packed: its name, its time and the words of its XADD, each behind its length. Returns the milliseconds until one is due, and nothing where there is no stream."""


CANCEL: Final = Script(
    """
local due, entries, name = KEYS[2], KEYS[3], ':' .. ARGV[1]
local number = redis.call('HGET', entries, name)
local score = number and redis.call('ZSCORE', due, number)
if not score or tonumber(score) <= micros() then return 0 end
redis.call('ZREM', due, number)
redis.call('HDEL', entries, number, name)
if redis.call('EXISTS', due) == 0 then redis.call('DEL', entries) end
return 1
""",
    _CARRY,
)
"""Forget a message that is not due. Arguments: its name. Returns 1 if there was one."""


UPCOMING: Final = Script(
    """
local after, found = '(' .. string.format('%.0f', micros()), {}
for _, number in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], after, '+inf', 'LIMIT', 0, ARGV[1])) do
  found[#found + 1] = redis.call('HGET', KEYS[3], number) or nil
end
return found
""",
    _CARRY,
)
"""What is not due yet, soonest first, as it was packed. Arguments: how many at the most."""
