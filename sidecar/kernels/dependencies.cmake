# SPDX-License-Identifier: Apache-2.0
# What the kernels need beside a compiler: Highway's source, which is compiled in, and ONNX Runtime's
# C++ headers. Headers of 1.18 or later will do: newer versions of ONNX Runtime serve the older interface.
#
# -DFETCHCONTENT_SOURCE_DIR_HIGHWAY=DIR and -DONNXRUNTIME_INCLUDE_DIR=DIR name local ones, and headers
# that are installed are found. Else both are downloaded from their projects; where those are not
# reached, apt gets the same files from Debian. One hash holds them to the same bytes.
get_filename_component(DOWNLOADS ${CMAKE_CURRENT_SOURCE_DIR}/../../.work/downloads ABSOLUTE)

# Puts a file into DOWNLOADS, unless it is there: from `url`, or with apt's `command`.
function(obtain name sha256 url command)
  set(file ${DOWNLOADS}/${name})
  if(EXISTS ${file})
    return()
  endif()
  file(DOWNLOAD ${url} ${file}.new INACTIVITY_TIMEOUT 20 STATUS status)
  if(NOT status MATCHES "^0;")
    ask_apt(${name} ${file}.new "${command}")
  endif()
  file(SHA256 ${file}.new found)
  if(NOT found STREQUAL sha256)
    message(FATAL_ERROR "${name}: expected the file with SHA-256 ${sha256}, found neither at ${url} (${status}) "
      "nor with apt. Name a local copy, as ${CMAKE_CURRENT_FUNCTION_LIST_FILE} says.")
  endif()
  file(RENAME ${file}.new ${file})
endfunction()

# Debian 13 has all files. Mirror and keys are those of this machine; its own lists stay as they are.
function(ask_apt name file command)
  set(apt ${DOWNLOADS}/apt)
  file(GLOB_RECURSE copy ${apt}/${name})  # of a package that an earlier file came from
  if(copy)
    file(COPY_FILE ${copy} ${file})
    return()
  endif()
  execute_process(
    COMMAND apt-get indextargets --format "$(REPO_URI)" "Created-By: Packages"
    OUTPUT_VARIABLE mirrors ERROR_QUIET RESULT_VARIABLE failed)
  if(failed OR NOT mirrors MATCHES "[^\n]+/debian/")
    return()
  endif()
  set(place "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${CMAKE_MATCH_0} trixie main")
  file(WRITE ${apt}/sources.list "deb ${place}\ndeb-src ${place}\n")
  file(MAKE_DIRECTORY ${apt}/lists/partial ${apt}/archives/partial)
  set(get apt-get -qq -o Dir::Etc::SourceList=${apt}/sources.list -o Dir::Etc::SourceParts=-
    -o Dir::State::Lists=${apt}/lists -o Dir::Cache=${apt})
  execute_process(COMMAND ${get} update)
  execute_process(COMMAND ${get} ${command} WORKING_DIRECTORY ${apt})
  file(GLOB package ${apt}/*.deb)
  if(package)
    file(ARCHIVE_EXTRACT INPUT ${package} DESTINATION ${apt})
    file(ARCHIVE_EXTRACT INPUT ${apt}/data.tar.xz DESTINATION ${apt})
  endif()
  file(GLOB_RECURSE copy ${apt}/${name})
  if(copy)
    file(COPY_FILE ${copy} ${file})
  endif()
endfunction()

include(FetchContent)
if(NOT FETCHCONTENT_SOURCE_DIR_HIGHWAY)
  obtain(highway_1.2.0.orig.tar.gz
    7e0be78b8318e8bdbf6fa545d2ecb4c90f947df03f7aadc42c1967f019e63343
    https://github.com/google/highway/archive/refs/tags/1.2.0.tar.gz
    "source;--download-only;highway")
endif()
set(HWY_ENABLE_CONTRIB OFF CACHE BOOL "")
set(HWY_ENABLE_EXAMPLES OFF CACHE BOOL "")
set(HWY_ENABLE_INSTALL OFF CACHE BOOL "")
set(HWY_ENABLE_TESTS OFF CACHE BOOL "")
set(HWY_FORCE_STATIC_LIBS ON CACHE BOOL "")
FetchContent_Declare(highway URL ${DOWNLOADS}/highway_1.2.0.orig.tar.gz DOWNLOAD_EXTRACT_TIMESTAMP OFF)
FetchContent_MakeAvailable(highway)

find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_cxx_inline.h PATH_SUFFIXES onnxruntime)
# An earlier build may have chosen DOWNLOADS when fewer headers were needed.
if(NOT ONNXRUNTIME_INCLUDE_DIR OR ONNXRUNTIME_INCLUDE_DIR STREQUAL DOWNLOADS)
  function(obtain_header name sha256)
    obtain(onnxruntime_${name}.h ${sha256}
      https://raw.githubusercontent.com/microsoft/onnxruntime/v1.21.0/include/onnxruntime/core/session/onnxruntime_${name}.h
      "download;libonnxruntime-dev")
  endfunction()
  obtain_header(c_api 7783e9664bdb0b1b36145b5c8587dd1bc9a399aa000edf2e3dd03003cafc6882)
  obtain_header(cxx_api b3b27d6a6fced0725e3f188379cca008b1d7a456997684756374d4b388f2cf05)
  obtain_header(cxx_inline 7f448e994c732eacd9e49900365fefa8f1ac998a6d6eb78e5f4aab1b8d9d8900)
  obtain_header(float16 6c4db3d1954b266c4febe413351af86cac922e3448538e7e452e51d646e56a4a)
  set(ONNXRUNTIME_INCLUDE_DIR ${DOWNLOADS} CACHE PATH "" FORCE)
endif()
