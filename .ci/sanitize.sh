#!/usr/bin/env bash
# `.ci/sanitize.sh PYTHON [pytest arguments]`: the CPU tests on an extension built with AddressSanitizer and
# UndefinedBehaviorSanitizer, in a copy of the tree under build/sanitize. Fails when a test fails and when any
# process of the run, child processes too, wrote a report.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
shift
case $python in */*) python=$(realpath -s "$python") ;; esac
copy=build/sanitize

cxx=${CXX:-$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("CXX") or "c++")')}
preload=""
for library in libasan.so libubsan.so libstdc++.so; do
  # Split on purpose: CXX may hold options.
  found=$($cxx -print-file-name=$library)
  if [ ! -e "$found" ]; then
    echo "sparsekern: make sanitize needs GCC with its sanitizer libraries: $cxx has no $library" \
      "(on Debian: apt-get install g++; another compiler: make sanitize CXX=g++)" >&2
    exit 1
  fi
  preload="$preload $(realpath "$found")"
done

# Objects of an earlier run stay, in its build folder.
mkdir -p $copy
rm -rf $copy/{reports,.ci,csrc,sparsekern,tests,benchmarks,docs}
mkdir $copy/reports
tar -c --exclude='*.so' --exclude=__pycache__ .ci csrc sparsekern tests benchmarks docs ./*.* LICENSE Makefile |
  tar -x -C $copy
cd $copy
export SPARSEKERN_SANITIZE=1
export CXX="$cxx"
"$python" setup.py -q build_ext --inplace
status=0
# What a sanitizer writes on its way out would be lost in pytest's own capture of the file descriptors.
LD_PRELOAD="$preload" PYTHONPATH=$PWD \
  ASAN_OPTIONS="detect_leaks=0:log_path=$PWD/reports/asan" \
  UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1:log_path=$PWD/reports/ubsan" \
  "$python" -m pytest --capture=sys "$@" || status=$?
if [ -n "$(ls reports)" ]; then
  cat reports/* >&2
  echo "sparsekern: the sanitizers reported what is above" >&2
  exit 1
fi
exit $status
