// Every table of kernels that runs here against the plain ones, and the pool of threads; without Python.
//
//   check [--tables NAMES] [--only kernels|threads] [--rounds N]
//
// NAMES: the tables that must be usable, the best first, with commas between. Exit code 1 where anything failed.
#include "check.h"

#include <csignal>
#include <string>

#include "../isa.h"

namespace bitnet::check {

char place[200];

namespace {

void fault(int signal) {
    const char* name = signal == SIGILL ? "an instruction that is not there" : "memory touched outside a buffer";
    // Only what a handler may call.
    for (const char* text : {"\nFAILED: ", name, ": ", static_cast<const char*>(place), "\n"})
        if (write(STDOUT_FILENO, text, std::strlen(text)) < 0) break;
    _exit(1);
}

std::string names_of(const std::vector<const Kernels*>& tables) {
    std::string names;
    for (const Kernels* kernels : tables) names.append(names.empty() ? "" : ",").append(kernels->name);
    return names;
}

struct Wish {
    std::string tables, only;
    size_t rounds = 1000;
};

bool read(int count, char** words, Wish& wish) {
    for (int i = 1; i + 1 < count; i += 2) {
        const std::string word = words[i], value = words[i + 1];
        if (word == "--tables")
            wish.tables = value;
        else if (word == "--only" && (value == "kernels" || value == "threads"))
            wish.only = value;
        else if (word == "--rounds" && std::atoi(value.c_str()) > 0)
            wish.rounds = size_t(std::atoi(value.c_str()));
        else
            return false;
    }
    return count % 2 == 1;
}

int run(const Wish& wish) {
    size_t passed = 0, failed = 0;
    const auto close = [&](const char* name, const Report& report) {
        std::printf("%s: %zu passed, %zu failed\n", name, report.passed, report.failed);
        std::fflush(stdout);
        passed += report.passed;
        failed += report.failed;
    };
    const std::string names = names_of(usable());
    if (!wish.tables.empty() && wish.tables != names) {
        std::printf("FAILED: expected the tables %s, found %s\n", wish.tables.c_str(), names.c_str());
        return 1;
    }
    for (const Kernels* kernels : usable()) {
        if (wish.only == "threads") break;
        Report report(kernels->name);
        check_integers(*kernels, report);
        check_planes(*kernels, report);
        check_dense(*kernels, report);
        check_packing(*kernels, report);
        check_floats(*kernels, report);
        check_attention(*kernels, report);
        check_head(*kernels, report);
        close(kernels->name, report);
    }
    if (wish.only != "kernels") {
        Report report("threads");
        check_threads(report, wish.rounds);
        check_head(*usable()[0], report);
        close("threads", report);
    }
    std::printf("%zu passed, %zu failed\n", passed, failed);
    return failed || !passed;
}

}  // namespace
}  // namespace bitnet::check

int main(int count, char** words) {
    bitnet::check::Wish wish;
    if (!bitnet::check::read(count, words, wish)) {
        std::fprintf(stderr, "usage: %s [--tables NAMES] [--only kernels|threads] [--rounds N]\n", words[0]);
        return 2;
    }
    for (int signal : {SIGSEGV, SIGBUS, SIGILL}) std::signal(signal, bitnet::check::fault);
    return bitnet::check::run(wish);
}
