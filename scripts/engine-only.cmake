# Included by CMake right after llama.cpp's own project() call (CMAKE_PROJECT_llama.cpp_INCLUDE).
# poise uses llama.cpp's C API only. Leaving out llama.cpp's `common` library (arguments, chat parsing, downloads)
# cuts the compilation from 9.5 to 3 minutes on two cores. llama-cpp-python forces the option on in the CMake cache;
# a normal variable set here wins over the cache.
set(LLAMA_BUILD_COMMON OFF)
