# The small vocabulary every folder is described with.
#
#   project_library(name SOURCES a.c b.c [USES base PkgConfig::ZMQ])     a folder's code, static
#   project_program(name OUTPUT mipha-x SOURCES main.c [USES ...])       a program
#   project_test(folder.file SOURCES test_file.c [USES ...] [LABELS slow] [TIMEOUT 60])

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
    set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} SKIP_RETURN_CODE 77)
    if(MIPHA_SANITIZE MATCHES thread)
        set_tests_properties(${name} PROPERTIES
            ENVIRONMENT "TSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/tsan.supp history_size=4")
    endif()
    if(ARG_LABELS)
        set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}")
    endif()
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
    endif()
endfunction()
