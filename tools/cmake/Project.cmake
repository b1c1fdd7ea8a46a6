# The small vocabulary every folder is described with.
#
#   project_library(name SOURCES a.c b.c [USES base PkgConfig::ZMQ])     a folder's code, static
#   project_program(name OUTPUT mipha-x SOURCES main.c [USES ...])       a program
#   project_test(folder.file SOURCES test_file.c [USES ...] [LABELS slow] [TIMEOUT 60])
#   sanitized_test(name)      every test added in another way calls this, too

function(project_library name)
    cmake_parse_arguments(ARG "" "" "SOURCES;USES" ${ARGN})
    add_library(${name} STATIC ${ARG_SOURCES})
    target_include_directories(${name} PUBLIC ${CMAKE_SOURCE_DIR})
    target_link_libraries(${name} PRIVATE mipha_warnings PUBLIC ${ARG_USES} Threads::Threads m)
endfunction()

function(project_program name)
    cmake_parse_arguments(ARG "" "OUTPUT" "SOURCES;USES" ${ARGN})
    add_executable(${name} ${ARG_SOURCES})
    target_link_libraries(${name} PRIVATE mipha_warnings ${ARG_USES})
    set_target_properties(${name} PROPERTIES OUTPUT_NAME ${ARG_OUTPUT}
        RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
endfunction()

# In a sanitizer build every process of a test, also the ones it starts and kills, stops at its first
# finding and writes it into a folder. The test sanitizer.findings prints the folder at the end and fails
# when there is anything: a finding in a child whose exit status nobody reads is not lost.
set(MIPHA_FINDINGS_DIR ${CMAKE_BINARY_DIR}/findings)
function(sanitized_test name)
    if(NOT MIPHA_SANITIZE)
        return()
    endif()
    set(all "log_path='${MIPHA_FINDINGS_DIR}/found' halt_on_error=1")
    set(thread "suppressions='${CMAKE_SOURCE_DIR}/tests/tsan.supp' print_suppressions=0 history_size=4")
    set_tests_properties(${name} PROPERTIES FIXTURES_REQUIRED sanitizer_findings ENVIRONMENT
        "ASAN_OPTIONS=${all} detect_leaks=1;LSAN_OPTIONS=print_suppressions=0;UBSAN_OPTIONS=print_stacktrace=1;TSAN_OPTIONS=${all} exitcode=66 ${thread}")
endfunction()
if(MIPHA_SANITIZE)
    set(find_script ${CMAKE_SOURCE_DIR}/tools/cmake/Findings.cmake)
    add_test(NAME sanitizer.no_findings_yet
        COMMAND ${CMAKE_COMMAND} -DDIR=${MIPHA_FINDINGS_DIR} -DSTEP=clear -P ${find_script})
    add_test(NAME sanitizer.findings
        COMMAND ${CMAKE_COMMAND} -DDIR=${MIPHA_FINDINGS_DIR} -DSTEP=print -P ${find_script})
    set_tests_properties(sanitizer.no_findings_yet PROPERTIES FIXTURES_SETUP sanitizer_findings)
    set_tests_properties(sanitizer.findings PROPERTIES FIXTURES_CLEANUP sanitizer_findings)
endif()

function(project_test name)
    cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;USES;LABELS" ${ARGN})
    string(REPLACE "." "_" target test_${name})
    add_executable(${target} ${ARG_SOURCES})
    target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR})
    target_link_libraries(${target} PRIVATE mipha_warnings ${ARG_USES} PkgConfig::CMOCKA)
    target_compile_definitions(${target} PRIVATE
        TEST_DATA_DIR="${CMAKE_SOURCE_DIR}/tests/data" SOURCE_DIR="${CMAKE_SOURCE_DIR}"
        PROGRAM_DIR="${CMAKE_BINARY_DIR}/bin")
    add_test(NAME ${name} COMMAND ${target})
    if(NOT ARG_TIMEOUT)
        set(ARG_TIMEOUT 120)
    endif()
    if(MIPHA_SANITIZE)
        math(EXPR ARG_TIMEOUT "3 * ${ARG_TIMEOUT}")
    endif()
    set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} SKIP_RETURN_CODE 77)
    sanitized_test(${name})
    if(ARG_LABELS)
        set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}")
    endif()
endfunction()

# A test of a network or of what looks at its results, once for each device there is: the CPU, the emulated GPU, and the
# GPU where CUDA was found, on which it is skipped when there is none.   network_tests(folder.file test_file.c uses...)
function(network_tests name source)
    project_test(${name} SOURCES ${source} USES ${ARGN} TIMEOUT 300)
    project_test(${name}.cuda_emulated SOURCES ${source} USES ops_emulated ${ARGN} TIMEOUT 900)
    set(devices cuda_emulated)
    if(MIPHA_HAS_CUDA)
        project_test(${name}.cuda SOURCES ${source} USES ${ARGN} TIMEOUT 300)
        list(APPEND devices cuda)
    endif()
    foreach(device ${devices})
        string(REPLACE "." "_" target "test_${name}.${device}")
        target_compile_definitions(${target} PRIVATE TEST_DEVICE="cuda")
    endforeach()
endfunction()

# A fuzz target is two things: with clang and MIPHA_FUZZ a libFuzzer program, and everywhere a test
# that replays its corpus.   project_fuzz(name SOURCES fuzz_name.c USES ... CORPUS dir)
function(project_fuzz name)
    cmake_parse_arguments(ARG "" "CORPUS" "SOURCES;USES" ${ARGN})
    if(MIPHA_FUZZ)
        add_executable(fuzz_${name} ${ARG_SOURCES})
        target_link_libraries(fuzz_${name} PRIVATE mipha_warnings ${ARG_USES} -fsanitize=fuzzer)
        target_include_directories(fuzz_${name} PRIVATE ${CMAKE_SOURCE_DIR})
    else()
        add_executable(replay_${name} ${ARG_SOURCES} ${CMAKE_SOURCE_DIR}/tests/fuzz/replay_main.c)
        target_link_libraries(replay_${name} PRIVATE mipha_warnings ${ARG_USES})
        target_include_directories(replay_${name} PRIVATE ${CMAKE_SOURCE_DIR})
        add_test(NAME fuzz.${name}.corpus COMMAND replay_${name} ${ARG_CORPUS})
        set_tests_properties(fuzz.${name}.corpus PROPERTIES TIMEOUT 120)
        sanitized_test(fuzz.${name}.corpus)
    endif()
endfunction()
