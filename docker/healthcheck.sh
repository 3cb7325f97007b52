#!/bin/sh
# Healthy: a `multitalk` process exists and is neither a zombie nor stopped. Importing the engine every half minute would
# take CPU time from a job, and a worker that computes for minutes cannot answer, so this check does not call it. RunPod
# has the SDK's heartbeat, and `{"input": {"action": "health"}}` reports more.
for folder in "${1:-/proc}"/[0-9]*; do
    # Process 1 is tini, whose command line also names the worker.
    [ "${folder##*/}" = 1 ] && continue
    # A process may end before it is read.
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
