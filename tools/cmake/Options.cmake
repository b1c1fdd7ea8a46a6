# What a person building this can choose, and the flags that hold everywhere.
option(MIPHA_TESTS "Build tests and benchmarks" ON)
option(MIPHA_MUTANTS "Build the broker's rules with switchable mistakes, for the simulator's own test" ON)
option(MIPHA_FUZZ "Build the libFuzzer targets (needs clang)" OFF)
set(MIPHA_SANITIZE "" CACHE STRING "Sanitizers to build with, for example address,undefined or thread")
# A sanitizer makes a schedule 10 to 20 times slower; the full number is for the plain build.
if(MIPHA_SANITIZE)
    set(schedules 4000)
else()
    set(schedules 100000)
endif()
set(MIPHA_SIMULATOR_SCHEDULES ${schedules} CACHE STRING "Schedules the test broker.simulator runs")

if(NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug or Release" FORCE)
endif()

set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
# assert() is not used; CHECK is on in every build, so NDEBUG would change nothing but warnings.
set(CMAKE_C_FLAGS_RELEASE "-O2 -g")
set(CMAKE_C_FLAGS_DEBUG "-O1 -g")
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g")
set(CMAKE_CXX_FLAGS_DEBUG "-O1 -g")

# Strict C11 hides clock_gettime, mmap and friends; POSIX 2008 plus the few Linux calls we name.
add_compile_definitions(_POSIX_C_SOURCE=200809L _DEFAULT_SOURCE MIPHA_VERSION="${PROJECT_VERSION}")
# a*b+c must round the same way in every kernel variant: contraction is written out, never guessed.
set(both "$<$<COMPILE_LANGUAGE:C,CXX>:-ffp-contract=off;-fno-omit-frame-pointer>")
add_compile_options("${both}")
if(MIPHA_SANITIZE)
    add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${MIPHA_SANITIZE};-fno-sanitize-recover=all>")
    add_link_options(-fsanitize=${MIPHA_SANITIZE})
else()
    add_compile_options($<$<COMPILE_LANGUAGE:C,CXX>:-fstack-protector-strong>)
    add_link_options(-Wl,-z,relro,-z,now)
endif()
if(MIPHA_FUZZ)
    if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
        message(FATAL_ERROR "MIPHA_FUZZ needs clang: configure with -DCMAKE_C_COMPILER=clang")
    endif()
    add_compile_options(-fsanitize=fuzzer-no-link)
endif()

# Warnings stop no user's build, whatever compiler there is; .ci/run sets CMAKE_COMPILE_WARNING_AS_ERROR.
add_library(mipha_warnings INTERFACE)
set(c_warnings -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wvla
    -Wundef -Wformat=2 -Wdouble-promotion)
target_compile_options(mipha_warnings INTERFACE "$<$<COMPILE_LANGUAGE:C>:${c_warnings}>")
