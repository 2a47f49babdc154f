#!/usr/bin/env bash
# One CCD of one visit, by pipetask: the batch job of DMTN-092 section 2.1.
#
# Usage: visit.sh CCD RA DEC FILTER|none EXPTIME BUTLER IMAGE [IMAGE2]
#                 [--timeout SECONDS] [--ppdb URL] [--alerts URL]
#
#   CCD       name or id, such as R22_S11 or 94
#   RA, DEC   boresight, ICRS degrees
#   FILTER    physical filter or band; none: that of the header
#   EXPTIME   anticipated exposure time of an image, seconds
#   BUTLER    repository
#   IMAGE     image name, MC_O_YYYYMMDD_NNNNNN; a second one for two snaps
#
# Waits for the images (120 s), however late it starts. A CCD that is done already is left as it is.
# Exit codes: 0 done, 1 failed, 2 bad request, 20 no template, 21 no calib, 22 cancelled, 65 bad data, 69 a service is
# not there, 70 a defect, 74 input or output failed, 75 no image in time, 128+N ended by signal N.
#
# Example: visit.sh R22_S11 150.1 -32 none 30 replay/butler MC_O_20250420_000001
set -u

if [[ ${1:-} == --help ]]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
    exit 0
fi
bin=${APFLOW_BIN:-$(dirname "$(command -v apflow || echo missing/)")}
if [[ ! -x $bin/apflow || ! -x $bin/pipetask ]]; then
    echo "error: apflow and pipetask are not on the PATH; activate their environment, or name its folder in APFLOW_BIN" >&2
    exit 69
fi
folder=$(mktemp -d) || exit 74
trap 'rm -rf "$folder"' EXIT

# Checks the arguments, waits, and makes the RUN ready; says nothing more where the CCD is done already.
"$bin/python" -m apflow.pipetask.job ready "$folder/job" "$@" || exit
[[ -e $folder/job ]] || exit 0
{
    read -r butler
    read -r pipeline
    read -r inputs
    read -r run
    read -r query
    mapfile -t settings
} < "$folder/job"

APFLOW_OUTCOME=$folder/ending "$bin/pipetask" --log-level WARNING run -b "$butler" -p "$pipeline" \
    -i "$inputs" --output-run "$run" --extend-run --skip-init-writes --no-versions -d "$query" "${settings[@]}"
code=$?

if [[ -e $folder/ending ]]; then
    { read -r code && read -r line; } < "$folder/ending"
    if ((code)); then echo "error: $line" >&2; else echo "$line"; fi
elif ((code <= 128)); then
    # The task left no word: the ledger knows whether its work was done.
    "$bin/python" -m apflow.pipetask.job settle "$code" "$@"
    code=$?
fi
exit "$code"
