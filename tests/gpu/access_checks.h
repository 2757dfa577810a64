// Who touched each byte of shared memory and of the arguments of a launch, and what that breaks: what compute-sanitizer
// calls memcheck, racecheck and initcheck.
//
// Threads run one after another here, so a race is never seen to happen: it is an access that nothing orders after
// another one of the same byte, at least one of them a write. Within a thread the program orders; within a block
// sync_block(), and nothing else: no operation of a warp does. Between blocks: access, fence, count_up of a counter by
// the one; later count_up of that counter, fence, access by the other; each step in the thread of the step before, or
// behind a sync_block() of the block.
//
// Limits: of several threads of a block that read a byte between two barriers the last two are kept, of several blocks
// the last two; what orders blocks orders two of them, not one and a third through a second. Who counted before whom is
// taken from the order in which blocks run here; a kernel that does not look at the count needs them to run backwards.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <string>
#include <vector>

namespace codesign::gpu {

enum Kind { READ, WRITE, COUNT };
constexpr const char *DOES[] = {" reads ", " writes ", " counts up "};

// Ends the launch with this message. The emulation has it, since it can leave a thread where it stands.
[[noreturn]] void stop(const std::string &message);

// Counts fences, barriers and counts of a launch: from its time alone follow the block and the barriers of an access.
using Time = uint32_t;

struct Access {
    Time time = 0; // 0: none
    uint16_t thread = 0;
    bool counts = false;
};

// A byte: the last write, reads since by two threads of one block, and one by a block before.
struct Cell {
    Access write, reads[3];
};

// A fence or a count, and the block's last barrier before it.
struct Event {
    Time time, barrier;
    int thread;
    const void *counter;
};

struct BlockHistory {
    Time start;
    int at[3];
    std::vector<Event> fences, counts;
};

// Memory that a kernel may touch: an argument, counted from 1, or shared memory, 0.
struct Span {
    const char *begin;
    int64_t bytes;
    int argument;
    std::vector<Cell> cells;

    Span(const void *from, int64_t size, int number)
        : begin((const char *)from), bytes(size), argument(number), cells(size) {}
    bool holds(const char *address, int64_t count) const {
        return address >= begin && address + count <= begin + bytes;
    }
    int64_t distance(const char *address) const {
        return std::max<int64_t>({0, begin - address, address - (begin + bytes)});
    }
    std::string name() const { return argument == 0 ? "shared memory" : "argument " + std::to_string(argument); }
};

class AccessChecks {
  public:
    AccessChecks(const char *shared, int64_t shared_bytes) { add(shared, shared_bytes, 0); }

    void add(const void *from, int64_t bytes, int argument) { spans.emplace_back(from, bytes, argument); }

    void begin_block(const int *at) {
        std::fill(spans[0].cells.begin(), spans[0].cells.end(), Cell{});
        barrier = ++now;
        blocks.push_back({now, {at[0], at[1], at[2]}, {}, {}});
    }

    void sync_block() { barrier = ++now; }
    void fence(int thread) { blocks.back().fences.push_back(event(thread, nullptr)); }
    void count_up(int thread, const void *counter) {
        blocks.back().counts.push_back(event(thread, counter));
        touch(thread, counter, sizeof(uint32_t), sizeof(uint32_t), COUNT);
    }

    void touch(int thread, const void *at, int64_t bytes, int64_t alignment, Kind kind) {
        const char *address = (const char *)at;
        const Access mine = {now, uint16_t(thread), kind == COUNT};
        Span *span = find(address, bytes);
        if (uintptr_t(at) % alignment) stop("misaligned: " + said(mine, kind, bytes) + nearest(address));
        if (!span) stop("out of bounds: " + said(mine, kind, bytes) + nearest(address));
        Cell *cells = span->cells.data() + (address - span->begin);
        for (int64_t i = 0; i < bytes; i++) {
            const char *wrong = visit(cells[i], mine, kind, span->argument == 0);
            if (wrong) stop(wrong + said(mine, kind, bytes) + place(*span, address) + earlier(cells[i], mine, kind));
        }
    }

    std::string running_block() const { return name(blocks.back()); }

  private:
    std::vector<Span> spans; // that of shared memory is the first
    std::vector<BlockHistory> blocks;
    Time now = 0, barrier = 0;

    Event event(int thread, const void *counter) { return {++now, barrier, thread, counter}; }

    Span *find(const char *address, int64_t bytes) {
        for (Span &span : spans)
            if (span.holds(address, bytes)) return &span;
        return nullptr;
    }

    const char *visit(Cell &cell, const Access &mine, Kind kind, bool shared) {
        if (shared && kind != WRITE && !cell.write.time) return "not written: ";
        if (conflict(cell.write, mine)) return "race: ";
        if (kind == READ) {
            remember(cell.reads, mine);
            return nullptr;
        }
        for (const Access &read : cell.reads)
            if (conflict(read, mine)) return "race: ";
        cell = {mine, {}};
        return nullptr;
    }

    void remember(Access (&reads)[3], const Access &mine) const {
        if (reads[0].time < blocks.back().start) {
            reads[2] = reads[0].time ? reads[0] : reads[2];
            reads[1] = {};
        } else if (reads[0].thread != mine.thread) {
            reads[1] = reads[0];
        }
        reads[0] = mine;
    }

    bool conflict(const Access &first, const Access &mine) const {
        if (!first.time || (first.counts && mine.counts)) return false;
        if (first.time < blocks.back().start) return !ordered_by_count(first, mine);
        return first.thread != mine.thread && first.time >= barrier;
    }

    template <class Earlier> static bool before(const Earlier &first, const Event &then) {
        return first.time < then.barrier || (first.thread == then.thread && first.time < then.time);
    }

    bool ordered_by_count(const Access &first, const Access &mine) const {
        const BlockHistory &from = block_of(first), &here = blocks.back();
        const Event then = {now + 1, barrier, mine.thread, nullptr};
        for (const Event &count : here.counts)
            for (const Event &theirs : from.counts)
                if (theirs.counter == count.counter && released(first, from, theirs) && acquired(count, here, then))
                    return true;
        return false;
    }
    static bool released(const Access &access, const BlockHistory &block, const Event &count) {
        if (access.counts && access.time == count.time) return true;
        return std::any_of(block.fences.begin(), block.fences.end(),
                           [&](const Event &fence) { return before(access, fence) && before(fence, count); });
    }
    static bool acquired(const Event &count, const BlockHistory &block, const Event &then) {
        return std::any_of(block.fences.begin(), block.fences.end(),
                           [&](const Event &fence) { return before(count, fence) && before(fence, then); });
    }

    const BlockHistory &block_of(const Access &access) const {
        const auto later = [](Time time, const BlockHistory &block) { return time < block.start; };
        return *(std::upper_bound(blocks.begin(), blocks.end(), access.time, later) - 1);
    }

    static std::string name(const BlockHistory &block) {
        return "block (" + std::to_string(block.at[0]) + ", " + std::to_string(block.at[1]) + ", " +
               std::to_string(block.at[2]) + ")";
    }
    std::string who(const Access &access) const {
        return "thread " + std::to_string(access.thread) + " of " + name(block_of(access));
    }
    std::string said(const Access &mine, Kind kind, int64_t bytes) const {
        return who(mine) + DOES[kind] + std::to_string(bytes) + " bytes at ";
    }
    static std::string place(const Span &span, const char *address) {
        const int64_t offset = address - span.begin;
        return span.name() + (offset < 0 ? " - " : " + ") + std::to_string(std::abs(offset)) + " of " +
               std::to_string(span.bytes);
    }
    // Where an address is that lies in no span, as seen from the one that is meant most likely.
    std::string nearest(const char *address) const {
        const auto nearer = [=](const Span &a, const Span &b) { return a.distance(address) < b.distance(address); };
        const auto span = std::min_element(spans.begin(), spans.end(), nearer);
        const bool near = span->distance(address) < 1 << 20;
        return near ? place(*span, address) : "an address far from all that it may touch";
    }
    std::string earlier(const Cell &cell, const Access &mine, Kind kind) const {
        if (conflict(cell.write, mine)) return ordering(cell.write, " wrote");
        if (kind == READ) return ", which no thread of the block has written yet";
        for (const Access &read : cell.reads)
            if (conflict(read, mine)) return ordering(read, " read");
        return "";
    }
    std::string ordering(const Access &first, const char *did) const {
        const bool same_block = first.time >= blocks.back().start;
        return ", which " + who(first) + did +
               (same_block ? ", without a sync_block between" : ", without fence, count_up and fence between");
    }
};

} // namespace codesign::gpu
