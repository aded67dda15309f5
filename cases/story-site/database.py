"""The site's stories: section 0 has 50,000 of them, each of the other hundred has ten. `database.py PORT` serves them by a
MariaDB, in a folder of its own."""
import os
import shutil
import sqlite3
import subprocess
import sys

STORIES = """
CREATE TABLE story (id INT PRIMARY KEY, section INT, title VARCHAR(200), teaser VARCHAR(400));
CREATE INDEX story_section ON story (section);
INSERT INTO story SELECT seq, CASE WHEN seq > 1000 THEN 0 ELSE seq %% 100 + 1 END, %s, '%s' FROM %s;
"""
TEASER = "teaser " * 57


def forget(*of_an_earlier_run):
    for path in of_an_earlier_run:
        shutil.rmtree(path, ignore_errors=True)


def write_sqlite():
    """The name of a file of sqlite's that holds them."""
    forget("cache", "sqlite")
    os.mkdir("sqlite")
    numbers = "(WITH RECURSIVE to_51000 (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM to_51000 WHERE seq < 51000) SELECT seq FROM to_51000)"
    file = os.path.abspath("sqlite/site")
    with sqlite3.connect(file) as site:
        site.executescript(STORIES % ("'Story ' || seq", TEASER, numbers))
    return file


def serve_mariadb(port):
    data, user = os.path.abspath("data"), "--user=root" if os.getuid() == 0 else "--skip-name-resolve"
    forget("cache", data)
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", "--datadir=" + data, "--skip-test-db"]
        + ["--auth-root-authentication-method=normal", user],
        check=True,
    )
    stories = STORIES % ("CONCAT('Story ', seq)", TEASER, "seq_1_to_51000")
    with open("stories.sql", "w") as file:
        file.write("CREATE DATABASE site;\nUSE site;\n" + stories.strip())
    # It takes this process's place, and so ends with whoever started us. Nobody's query is answered before the file has
    # run.
    os.execv("/usr/sbin/mariadbd", [
        "mariadbd", "--no-defaults", "--datadir=" + data, "--socket=" + os.path.join(data, "socket"), "--port=" + port,
        "--bind-address=127.0.0.1", "--skip-grant-tables", "--skip-log-bin", "--innodb-buffer-pool-size=64M",
        "--init-file=" + os.path.abspath("stories.sql"), user,
    ])


if __name__ == "__main__":
    serve_mariadb(sys.argv[1])
