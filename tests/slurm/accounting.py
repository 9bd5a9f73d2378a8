"""The accounting of a test cluster: slurmdbd over a MariaDB of its own, so that sacct answers.

Both run from the cluster's state directory: MariaDB as user mysql with a socket there and no port,
slurmdbd as root, whom MariaDB knows by the socket: there is no password. Nothing here has to
survive the machine, so nothing waits for the disk.
"""

import functools
import shutil
import string
import subprocess
from collections.abc import Callable
from pathlib import Path

from processes import wait_until

PROGRAMS = ("slurmdbd", "sacct", "sacctmgr", "mariadb", "mariadbd", "mariadb-install-db")
PACKAGES = ("slurmdbd", "mariadb-server")
DATABASE = "slurm_acct_db"
# The lines that slurm.conf has in place of AccountingStorageType=accounting_storage/none.
CLUSTER_LINES = string.Template(
    """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$port
AccountingStoragePass=$state_dir/munge/socket"""
)
SLURMDBD_CONF = string.Template(
    """AuthType=auth/munge
AuthInfo=socket=$state_dir/munge/socket
TrackWCKey=yes
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$port
SlurmUser=root
LogFile=$state_dir/logs/slurmdbd.log
PidFile=$state_dir/pids/slurmdbd
DebugLevel=info
CommitDelay=1
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=$database
"""
)
DATABASE_OPTIONS = (
    "--user=mysql",
    "--skip-name-resolve",
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=16M",
    "--innodb-flush-method=nosync",
    "--debug-no-sync",
)
SERVER_OPTIONS = ("--skip-networking", "--skip-log-bin", "--performance-schema=OFF")
ACCOUNT = "tests"
START_TIMEOUT_S = 60
# Runs a command against the cluster and gives what it printed.
Run = Callable[[list[str]], str]


def write_files(state_dir: Path, port: int) -> None:
    """Write slurmdbd's configuration, and make the folder of its database."""
    config = state_dir / "slurmdbd.conf"
    config.touch(mode=0o600)  # Or slurmdbd refuses it.
    config.write_text(SLURMDBD_CONF.substitute(state_dir=state_dir, port=port, database=DATABASE))
    database = state_dir / "mariadb"
    database.mkdir()
    shutil.chown(database, "mysql", "mysql")


def start(state_dir: Path, env: dict[str, str], run: Run, cluster_name: str) -> None:
    """Start MariaDB and slurmdbd, and register the cluster with an account for root.

    Raises:
        TimeoutError: One of them does not answer.
    """
    folder = state_dir / "mariadb"
    options = (f"--datadir={folder}/data", *DATABASE_OPTIONS)
    # --no-defaults: this machine's own configuration is for another MariaDB. It must come first.
    auth = "--auth-root-authentication-method=socket"
    run(["mariadb-install-db", "--no-defaults", auth, "--skip-test-db", *options])
    files = (f"--socket={folder}/socket", f"--pid-file={folder}/pid", f"--log-error={folder}/log")
    # It has no option to go to the background by itself.
    run(["setsid", "--fork", "mariadbd", "--no-defaults", *options, *SERVER_OPTIONS, *files])
    _wait_for("MariaDB", (folder / "socket").exists)
    # slurmdbd would make it, but that fails with the client library 3.4.10 of MariaDB: a connection
    # that could not be made is of no use again ("maximum allowed number of columns (=0)").
    create = f"--execute=create database {DATABASE}"
    run(["mariadb", "--no-defaults", f"--socket={folder}/socket", create])
    dbd_env = {**env, "MYSQL_UNIX_PORT": f"{folder}/socket"}
    subprocess.run(["slurmdbd"], env=dbd_env, check=True, capture_output=True)
    _wait_for(
        "slurmdbd", functools.partial(_answers, ["sacctmgr", "--noheader", "list", "cluster"], env)
    )
    run(["sacctmgr", "--immediate", "add", "cluster", cluster_name])
    run(["sacctmgr", "--immediate", "add", "account", ACCOUNT, f"Cluster={cluster_name}"])
    # root has an account of its own already.
    run(["sacctmgr", "--immediate", "add", "user", "root", f"Account={ACCOUNT}"])
    run(["sacctmgr", "--immediate", "modify", "user", "root", "set", f"DefaultAccount={ACCOUNT}"])


def _answers(command: list[str], env: dict[str, str]) -> bool:
    return subprocess.run(command, env=env, capture_output=True).returncode == 0


def _wait_for(name: str, ready: Callable[[], bool]) -> None:
    if not wait_until(ready, START_TIMEOUT_S):
        raise TimeoutError(f"{name} does not answer after {START_TIMEOUT_S} s")
