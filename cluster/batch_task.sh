#!/usr/bin/env bash
# One task of a batch submission: one CCD.
# Usage: batch_task.sh FOLDER ATTEMPT WAIT_S COMMAND [INDEX]
# Runs COMMAND with the words of line INDEX (from 0; default: SLURM's) of FOLDER/manifest.tsv, which is there once the
# names of the images are known; leaves "exit code, start, end, host" in FOLDER/ended/ATTEMPT.INDEX.
set -u
folder=$1 attempt=$2 wait_s=$3 command=$4 index=${5:-${SLURM_ARRAY_TASK_ID:?}}
began=$EPOCHREALTIME

finish() {
    local ended=$folder/ended/$attempt.$index
    # A report that is there is whole.
    echo "$1 $began $EPOCHREALTIME $HOSTNAME" > "$ended.new" && mv "$ended.new" "$ended"
    exit "$1"
}

until [[ -e $folder/manifest.tsv ]]; do
    if ((SECONDS >= wait_s)); then
        echo "error: the names of the images were not known within $wait_s s" >&2
        finish 75
    fi
    sleep 1
done
line=$(sed -n "$((index + 1))p" "$folder/manifest.tsv")
IFS=$'\t' read -r -a words <<< "$line"
bash "$command" "${words[@]}"
finish $?
