// What GCC 9 and later take from a C++ library or a glibc newer than those of the oldest systems that PyTorch runs on
// (glibc 2.28, libstdc++ of GCC 8), defined here instead, so that a wheel built on a newer system loads on those too.
// Linked as an archive: hidden from other libraries, and left out where nothing asks for it.
#include <new>
#include <sstream>

#if _GLIBCXX_RELEASE >= 9

// glibc 2.32: whether reference counts may do without atomic instructions. Never.
extern "C" char __libc_single_threaded;
char __libc_single_threaded = 0;

namespace std {

// GCC 11. Weak, for builds with a static libstdc++, which has it beside others that are needed.
__attribute__((weak, noreturn)) void __throw_bad_array_new_length();
void __throw_bad_array_new_length() { throw bad_array_new_length(); }

// GCC 9.
template basic_stringstream<char>::basic_stringstream();
template basic_ostringstream<char>::basic_ostringstream();

}  // namespace std

#endif
