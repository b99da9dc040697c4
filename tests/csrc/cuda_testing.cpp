// Usage: cuda_tests [--seed N] [--cases N] [name part ...]: runs the tests whose names contain one of the parts, or
// all, each on so many random cases.
#include "cuda_testing.h"

#include <csignal>
#include <cstdarg>
#include <cstdlib>

namespace cmslap::cuda::testing {

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

namespace {

char description[512];
unsigned seed;

// On a stack of its own, because the fault may be the end of a fiber's.
void report_fault(int) {
  char text[1024];
  const int length =
      std::snprintf(text, sizeof text, "touched memory outside its buffers: %s, --seed %u\n", description, seed);
  if (write(STDERR_FILENO, text, length) < 0) std::abort();
  _exit(1);
}

void report_faults() {
  static char room[65536];
  stack_t stack{};
  stack.ss_sp = room;
  stack.ss_size = sizeof room;
  sigaltstack(&stack, nullptr);
  struct sigaction action{};
  action.sa_handler = report_fault;
  action.sa_flags = SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

bool wanted(const std::string& name, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    if (name.find(part) != std::string::npos) return true;
  return parts.empty();
}

}  // namespace

void describe(const std::string& what) { std::snprintf(description, sizeof description, "%s", what.c_str()); }

std::string format(const char* format, ...) {
  char text[512];
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return text;
}

}  // namespace cmslap::cuda::testing

int main(int argc, char** argv) {
  using namespace cmslap::cuda::testing;
  unsigned first_seed = std::random_device{}();
  unsigned cases = 6;
  std::vector<std::string> parts;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if ((argument == "--seed" || argument == "--cases") && i + 1 < argc) {
      (argument == "--seed" ? first_seed : cases) = static_cast<unsigned>(std::strtoul(argv[++i], nullptr, 10));
    } else {
      parts.push_back(argument);
    }
  }
  report_faults();
  int ran = 0, failed = 0;
  for (const Test& test : tests()) {
    if (!wanted(test.name, parts)) continue;
    ++ran;
    try {
      for (seed = first_seed; seed != first_seed + cases; ++seed) {
        generator.seed(seed);
        describe(test.name);
        test.run();
      }
      std::printf("passed %s\n", test.name.c_str());
    } catch (const Skipped& reason) {
      std::printf("skipped %s: %s\n", test.name.c_str(), reason.what());
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAILED %s\n  %s\n  %s\n  --seed %u --cases 1\n", test.name.c_str(), error.what(), description, seed);
    }
    std::fflush(stdout);
  }
  std::printf("%d tests, %d failed, --seed %u\n", ran, failed, first_seed);
  return failed == 0 && ran > 0 ? 0 : 1;
}
