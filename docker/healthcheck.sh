#!/bin/sh
# Healthy: a `multitalk` process lives and is neither a zombie nor stopped. Importing the engine every half minute would
# take the CPU from a job, and a worker that computes for minutes answers nobody, so nothing is asked of it here: RunPod
# has the SDK's heartbeat, and `{"input": {"action": "health"}}` says more.
for folder in "${1:-/proc}"/[0-9]*; do
    # Process 1 is tini, whose words name the worker as well.
    [ "${folder##*/}" = 1 ] && continue
    # A process may be gone before it is read.
    words=$(tr '\0' ' ' 2>/dev/null <"$folder/cmdline") || continue
    case "$words" in
    *bin/multitalk\ *)
        state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "$folder/status" 2>/dev/null)
        case "$state" in
        R | S | D) exit 0 ;;
        esac
        ;;
    esac
done
echo "no multitalk process runs" >&2
exit 1
