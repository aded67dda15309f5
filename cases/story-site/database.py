"""The site's MariaDB with its stories, in a folder of its own: `database.py PORT`. Section 0 has 50,000 of them, each of
the other hundred has ten."""
import os
import shutil
import subprocess
import sys

STORIES = """
CREATE DATABASE site;
CREATE TABLE site.story (id INT PRIMARY KEY, section INT, title VARCHAR(200), teaser VARCHAR(400), INDEX (section));
INSERT INTO site.story SELECT seq, IF(seq > 1000, 0, seq % 100 + 1), CONCAT('Story ', seq), REPEAT('teaser ', 57) FROM site.seq_1_to_51000;
"""

port = sys.argv[1]
data, user = os.path.abspath("data"), "--user=root" if os.getuid() == 0 else "--skip-name-resolve"
for of_an_earlier_run in (data, "cache"):
    shutil.rmtree(of_an_earlier_run, ignore_errors=True)
subprocess.run(
    ["mariadb-install-db", "--no-defaults", "--datadir=" + data, "--skip-test-db", "--auth-root-authentication-method=normal"]
    + [user],
    check=True,
)
with open("stories.sql", "w") as file:
    file.write(STORIES.strip())
# It takes this process's place, and so ends with whoever started us. Nobody's query is answered before the file has run.
os.execv("/usr/sbin/mariadbd", [
    "mariadbd", "--no-defaults", "--datadir=" + data, "--socket=" + os.path.join(data, "socket"), "--port=" + port,
    "--bind-address=127.0.0.1", "--skip-grant-tables", "--skip-log-bin", "--innodb-buffer-pool-size=64M",
    "--init-file=" + os.path.abspath("stories.sql"), user,
])
