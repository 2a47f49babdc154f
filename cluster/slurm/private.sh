#!/usr/bin/env bash
# Keep the daemons of a private cluster together: munged, slurmctld and a slurmd a node.
# Usage: private.sh FOLDER NODE...   with SLURM_CONF set. Ends, with all of them and their jobs, at SIGTERM or when
# one of them ends.
set -u
folder=$1
shift
PATH=$PATH:/usr/sbin
export SLURM_CONF
cd "$folder" || exit 1

end() {
    trap '' TERM INT
    kill -TERM $(jobs -p)
    sleep 0.2
    kill -KILL $(jobs -p) 2> /dev/null
    # Jobs and those who mind them outlive their slurmd, in sessions of their own. The environment of a job tells whose
    # it is; slurmstepd writes over its own, and stays where its slurmd was started.
    for step in $(pgrep -x slurmstepd); do
        [[ /proc/$step/cwd -ef $folder ]] && kill -KILL "$step" 2> /dev/null
    done
    grep -lzxF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ 2> /dev/null \
        | xargs -r grep -lz '^SLURM_JOB_ID=' 2> /dev/null \
        | cut -d / -f 3 | xargs -r kill -KILL 2> /dev/null
    exit "$1"
}
trap 'end 0' TERM INT

# --force: the folder is closed to other users, of whom none is to use the socket.
munged --foreground --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" \
    --pid-file="$folder/munged.pid" --seed-file="$folder/munged.seed" --log-file="$folder/munged.log" &
for _ in $(seq 100); do [[ -S $folder/munge.socket ]] && break; sleep 0.05; done
slurmctld -D &
for node in "$@"; do slurmd -D -N "$node" & done
wait -n
end 1
