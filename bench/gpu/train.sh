#!/bin/sh
# Trains for a while, and goes on from there the next time; run it in the checkout's root:
#
#     sh bench/gpu/train.sh IMAGES.tar RUN SECONDS CONFIG [key=value ...]
#
# IMAGES.tar has a folder train/ of images (and what key=value names of build/images/). RUN is the run's folder, six files of a
# few MB: bring it back, and along for the next time. PYTHON is the interpreter (default: python3).
set -eu
images=$1 run=$2 seconds=$3 config=$4
shift 4
rm -rf build/images && mkdir -p build/images
tar -xf "$images" -C build/images
resume=
if [ -f "$run/last.pt" ]; then resume=--resume; fi
status=0
timeout --preserve-status -k 30 -s TERM "$seconds" "${PYTHON:-python3}" -m cmslap train "$config" $resume \
    "out=$run" data.train=build/images/train "$@" || status=$?
[ "$status" = 0 ] || [ "$status" = 143 ] # done, or saved after the signal
