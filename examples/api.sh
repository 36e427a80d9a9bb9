# What the examples share: requests to the server at $server, answered as JSON. Read by them with `.`.

set -eu
server=${1:?usage: $0 SERVER DATA, such as http://127.0.0.1:8000 $PWD/tests/data/mnist10k}
data=$(cd "${2:?usage: $0 SERVER DATA}" && pwd)
# Ids of tasks are the client's choice; these differ from run to run.
run=$(basename "$0" .sh)-$$

# start KIND BODY: starts a task; where the server refuses it, says why and ends the example.
start() {
    answer=$(curl --silent --show-error --fail-with-body --json "$2" "$server/api/v2/$1/start") || {
        echo "$answer" >&2
        exit 1
    }
}

# task ID: the task's record.
task() {
    curl --silent --show-error --fail-with-body "$server/api/v2/tasks/$1"
}

# member NAME: a text of the record on standard input.
member() {
    sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"
}

# begin ID: waits until the task waits for a device no longer.
begin() {
    while [ "$(task "$1" | member status)" = queued ]; do
        sleep 0.2
    done
}

# finish ID: follows the task's events until it ends, says where it ran, and fails unless it ended well.
finish() {
    curl --silent --show-error --no-buffer "$server/api/v2/tasks/$1/logs" >/dev/null
    state=$(task "$1" | member status)
    if [ "$state" != completed ]; then
        echo "$1: $state: $(task "$1" | member message)" >&2
        exit 1
    fi
    echo "$1: $state on $(task "$1" | member device)"
}
