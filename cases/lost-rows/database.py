"""A MariaDB without a table of its own, in a folder of its own: `database.py PORT`. Its sequences are tables enough."""
import os
import shutil
import subprocess
import sys

port = sys.argv[1]
data, user = os.path.abspath("data"), "--user=root" if os.getuid() == 0 else "--skip-name-resolve"
shutil.rmtree(data, ignore_errors=True)
subprocess.run(
    ["mariadb-install-db", "--no-defaults", "--datadir=" + data, "--skip-test-db", "--auth-root-authentication-method=normal"]
    + [user],
    check=True,
)
# It takes this process's place, and so ends with whoever started us.
os.execv("/usr/sbin/mariadbd", [
    "mariadbd", "--no-defaults", "--datadir=" + data, "--socket=" + os.path.join(data, "socket"), "--port=" + port,
    "--bind-address=127.0.0.1", "--skip-grant-tables", "--skip-log-bin", "--innodb-buffer-pool-size=16M", user,
])
