//! A real application of Debian's, as a teacher would install it: WordPress with a database of the
//! site's own, through its own pages, over HTTPS.

use std::{process::Command, time::Duration};

use super::Cloud;
use crate::harness::{Server, free_port, run, until, until_within};

/// A MariaDB of this test alone.
fn mariadb(port: u16) -> (Server, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    run("chmod", &["755", path]);
    let made = run(
        "mariadb-install-db",
        &[
            "--no-defaults",
            "--user=root",
            &format!("--datadir={path}/data"),
            // A server empties the common one of what another has there.
            &format!("--tmpdir={path}"),
            "--auth-root-authentication-method=socket",
            "--skip-test-db",
        ],
    );
    assert_eq!(made.code, 0, "{made:?}");
    let server = Server::start(
        &[],
        port,
        "mariadbd",
        &[
            "--no-defaults",
            "--user=root",
            &format!("--datadir={path}/data"),
            &format!("--tmpdir={path}"),
            &format!("--socket={path}/socket"),
            &format!("--pid-file={path}/pid"),
            &format!("--port={port}"),
            "--bind-address=0.0.0.0",
            "--skip-name-resolve",
        ],
    );
    (server, folder)
}

/// Sites beside a server of databases, each with so much room.
fn with_database(port: u16, sites: &str, disk: &str) -> (Server, tempfile::TempDir, Cloud) {
    let (server, folder) = mariadb(port);
    let socket = folder.path().join("socket");
    let config = format!(
        "[database]\nsocket = \"{}\"\nport = {port}\n[groups.default]\ndisk = \"{disk}\"\n",
        socket.display()
    );
    (server, folder, Cloud::start(sites, &config))
}

#[test]
fn wordpress_with_its_own_database() {
    let port = free_port();
    let (_server, folder, cloud) = with_database(
        port,
        "[sites.blog]\ndatabase = true\n[sites.thief]\ndatabase = true\n[sites.plain]\n",
        "256MiB",
    );
    assert_eq!(cloud.get("blog", "").status, 200);
    let files = cloud.files("blog");
    let copied = run(
        "sh",
        &[
            "-c",
            &format!(
                "cp -rL /usr/share/wordpress/. '{}' 2>/dev/null; rm -f '{0}/wp-config.php'; ls '{0}/wp-admin/install.php'",
                files.display()
            ),
        ],
    );
    assert_eq!(copied.code, 0, "{copied:?}");
    cloud.put(
        "blog",
        "wp-config.php",
        "<?php define('DB_NAME', getenv('DB_NAME')); define('DB_USER', getenv('DB_USER')); define('DB_PASSWORD', getenv('DB_PASSWORD'));\n\
         define('DB_HOST', getenv('DB_HOST') . ':' . getenv('DB_PORT')); define('DB_CHARSET', 'utf8mb4'); define('WP_HTTP_BLOCK_EXTERNAL', true); define('DISABLE_WP_CRON', true);\n\
         $table_prefix = 'wp_'; if (!defined('ABSPATH')) define('ABSPATH', __DIR__ . '/'); require ABSPATH . 'wp-settings.php';\n",
    );
    let own = cloud
        .command(&["site", "exec", "blog", "--", "id", "-u"])
        .out;
    run(
        "chown",
        &[
            "-R",
            &format!("{0}:{0}", own.trim()),
            files.to_str().unwrap(),
        ],
    );

    let nuage = cloud.nuage();
    let installed = nuage.curl(
        "https://blog.w.example/wp-admin/install.php?step=2",
        &[
            "--max-time",
            "60",
            "-d",
            "weblog_title=Le+blog+de+la+classe",
            "-d",
            "user_name=prof",
            "-d",
            "admin_password=Tr3s-secret!",
            "-d",
            "admin_password2=Tr3s-secret!",
            "-d",
            "pw_weak=1",
            "-d",
            "admin_email=prof@school.example",
            "-d",
            "Submit=Install",
            "-d",
            "language=",
        ],
    );
    assert_eq!(installed.status, 200, "{installed:?}");
    let home = nuage.curl("https://blog.w.example/", &[]);
    assert_eq!(home.status, 200, "{home:?}");
    assert!(home.body.contains("Le blog de la classe"), "{}", home.body);
    let jar = folder.path().join("jar").display().to_string();
    let login = nuage.curl(
        "https://blog.w.example/wp-login.php",
        &[
            "-c",
            &jar,
            "-b",
            "wordpress_test_cookie=WP%20Cookie%20check",
            "-d",
            "log=prof",
            "--data-urlencode",
            "pwd=Tr3s-secret!",
            "-d",
            "testcookie=1",
        ],
    );
    assert_eq!(login.status, 302, "{login:?}");
    let dashboard = nuage.curl("https://blog.w.example/wp-admin/", &["-b", &jar]);
    assert!(
        dashboard.status == 200 && dashboard.body.contains("Dashboard"),
        "{}",
        dashboard.status
    );

    // The password opens one database, and nobody else's password does.
    let password = cloud
        .command(&[
            "site",
            "exec",
            "blog",
            "--",
            "sh",
            "-c",
            "echo $DB_NAME $DB_USER $DB_PASSWORD $DB_HOST",
        ])
        .out;
    let words: Vec<&str> = password.split_whitespace().collect();
    cloud.get("thief", "");
    for (user, secret) in [("$user", "$own"), ("'{blog}'", "$own"), ("'{blog}'", "''")] {
        let user = user.replace("{blog}", words[1]);
        cloud.put("thief", "steal.php", &format!("<?php mysqli_report(MYSQLI_REPORT_OFF); $user = getenv('DB_USER'); $own = getenv('DB_PASSWORD'); echo @mysqli_connect('{}', {user}, {secret}, '{}', {port}) ? 'stolen' : 'refused';", words[3], words[0]));
        assert_eq!(cloud.get("thief", "steal.php").body, "refused");
    }
    let environment = cloud.command(&["site", "exec", "plain", "--", "env"]).out;
    assert!(!environment.contains("DB_"), "{environment}");

    // Backed up with its database, spoiled, and restored.
    let backup = folder.path().join("blog.tar.zst").display().to_string();
    let saved = cloud.command(&["site", "backup", "blog", "-o", &backup]);
    assert_eq!(saved.code, 0, "{saved:?}");
    let sql = format!(
        "UPDATE {}.wp_options SET option_value='spoiled' WHERE option_name='blogname'",
        words[0]
    );
    let socket = folder.path().join("socket").display().to_string();
    let spoiled = Command::new("mariadb")
        .args(["--no-defaults", "--socket", &socket, "-e", &sql])
        .status()
        .unwrap();
    assert!(spoiled.success());
    assert!(
        nuage
            .curl("https://blog.w.example/", &[])
            .body
            .contains("spoiled")
    );
    let restored = cloud.command(&["site", "restore", "blog", &backup]);
    assert_eq!(restored.code, 0, "{restored:?}");
    let home = nuage.curl("https://blog.w.example/", &[]);
    assert!(
        home.status == 200 && home.body.contains("Le blog de la classe"),
        "{home:?}"
    );
}

#[test]
fn a_site_that_went_and_came_back_gets_its_database_from_the_bin() {
    let port = free_port();
    let (_server, folder) = mariadb(port);
    let declared = "[sites.notes]\ndatabase = true\n";
    let cloud = Cloud::start(
        declared,
        &format!(
            "[database]\nsocket = \"{}\"\nport = {port}\n",
            folder.path().join("socket").display()
        ),
    );
    assert_eq!(cloud.get("notes", "").status, 200);
    let connect = "$db = new mysqli(getenv('DB_HOST'), getenv('DB_USER'), getenv('DB_PASSWORD'), getenv('DB_NAME'), (int) getenv('DB_PORT'));";
    cloud.put(
        "notes",
        "write.php",
        &format!("<?php {connect} $db->query('CREATE TABLE notes (text TEXT)'); $db->query(\"INSERT INTO notes VALUES ('remember')\"); echo $db->affected_rows;"),
    );
    let read =
        format!("<?php {connect} echo $db->query('SELECT text FROM notes')->fetch_row()[0];");
    cloud.put("notes", "read.php", &read);
    assert_eq!(cloud.get("notes", "write.php").body, "1");
    assert_eq!(cloud.get("notes", "read.php").body, "remember");

    // Gone for good: its files are in the bin and its database is no more.
    cloud.nuage().folder.zone("[sites.other]\n");
    let databases = || {
        let socket = folder.path().join("socket").display().to_string();
        let shown = run(
            "mariadb",
            &[
                "--no-defaults",
                "--socket",
                &socket,
                "-N",
                "-e",
                "SHOW DATABASES LIKE 'notes%'",
            ],
        );
        assert_eq!(shown.code, 0, "{shown:?}");
        shown.out
    };
    assert!(!databases().trim().is_empty());
    let site_folder = cloud.files("notes");
    until_within(Duration::from_secs(90), "the site is in the bin", || {
        !site_folder.exists() && databases().trim().is_empty()
    });

    // Named again, it is new; restored, it is what it was.
    cloud.nuage().folder.zone(declared);
    until("the new site answers", || {
        cloud.get("notes", "").status == 200
    });
    assert_eq!(cloud.get("notes", "read.php").status, 404);
    let restored = cloud.command(&["site", "restore", "notes", "--bin"]);
    assert_eq!(restored.code, 0, "{restored:?}");
    assert_eq!(cloud.get("notes", "read.php").body, "remember");
}

/// A site whose page runs the SQL it is sent, statement by statement, and prints what comes of each.
fn with_sql(disk: &str) -> (Cloud, Server, tempfile::TempDir) {
    let port = free_port();
    let (server, folder, cloud) = with_database(port, "[sites.notes]\ndatabase = true\n", disk);
    assert_eq!(cloud.get("notes", "").status, 200);
    cloud.put("notes", "sql.php", "<?php mysqli_report(MYSQLI_REPORT_OFF); $db = new mysqli(getenv('DB_HOST'), getenv('DB_USER'), getenv('DB_PASSWORD'), getenv('DB_NAME'), (int) getenv('DB_PORT')); foreach (explode(\";\\n\", file_get_contents('php://input')) as $sql) { $got = $db->query($sql); echo is_object($got) ? implode(',', $got->fetch_row() ?? ['none']) : ($got ? 'done' : $db->errno), ' '; }");
    (cloud, server, folder)
}

fn sql(cloud: &Cloud, statements: &[&str]) -> String {
    let asked = cloud.nuage().curl(
        "https://notes.w.example/sql.php",
        &[
            "-H",
            "Content-Type: text/plain",
            "--data-binary",
            &statements.join(";\n"),
        ],
    );
    assert_eq!(asked.status, 200, "{asked:?}");
    asked.body
}

#[test]
fn views_triggers_and_routines_come_back_and_work() {
    let (cloud, _server, folder) = with_sql("64MiB");
    let made = sql(
        &cloud,
        &[
            "CREATE TABLE notes (text TEXT)",
            "CREATE TABLE log (said TEXT)",
            "CREATE VIEW latest AS SELECT text FROM notes",
            "CREATE TRIGGER noted BEFORE INSERT ON notes FOR EACH ROW INSERT INTO log VALUES (NEW.text)",
            "CREATE FUNCTION answer() RETURNS INT DETERMINISTIC RETURN 42",
            "INSERT INTO notes VALUES ('remember')",
            // What leads nowhere, as years of updates leave it.
            "CREATE TABLE old (a INT)",
            "CREATE VIEW stale AS SELECT a FROM old",
            "DROP TABLE old",
        ],
    );
    assert_eq!(made.trim(), "done done done done done done done done done");
    let works = || {
        let got = sql(
            &cloud,
            &[
                "SELECT text FROM latest",
                "SELECT answer()",
                "INSERT INTO notes VALUES ('more')",
                "SELECT said FROM log WHERE said = 'more'",
                "DELETE FROM log WHERE said = 'more'",
                "DELETE FROM notes WHERE text = 'more'",
            ],
        );
        assert_eq!(got.trim(), "remember 42 done more done done");
    };
    works();
    let backup = folder.path().join("notes.tar.zst").display().to_string();
    let saved = cloud.command(&["site", "backup", "notes", "-o", &backup]);
    assert_eq!(saved.code, 0, "{saved:?}");
    sql(
        &cloud,
        &[
            "DROP VIEW latest",
            "DROP FUNCTION answer",
            "DROP TRIGGER noted",
            "DROP TABLE notes",
        ],
    );
    let restored = cloud.command(&["site", "restore", "notes", &backup]);
    assert_eq!(restored.code, 0, "{restored:?}");
    works();
    // What was spoiled is in the bin, and comes back just as well.
    let back = cloud.command(&["site", "restore", "notes", "--bin"]);
    assert_eq!(back.code, 0, "{back:?}");
    assert_eq!(sql(&cloud, &["SELECT text FROM latest"]).trim(), "1146");
    let forth = cloud.command(&["site", "restore", "notes", "--bin"]);
    assert_eq!(forth.code, 0, "{forth:?}");
    works();
    // Names of one letter more or less are other databases.
    let database = cloud
        .command(&["site", "exec", "notes", "--", "sh", "-c", "echo $DB_NAME"])
        .out;
    let other = database.trim().replace('_', "X");
    let refused = sql(&cloud, &[&format!("CREATE DATABASE {other}")]);
    assert_eq!(refused.trim(), "1044", "access denied");
    // Gone, though its stale view is still there.
    cloud.nuage().folder.zone("[sites.other]\n");
    let files = cloud.files("notes");
    let socket = folder.path().join("socket").display().to_string();
    until_within(Duration::from_secs(90), "the site is in the bin", || {
        let shown = run(
            "mariadb",
            &[
                "--no-defaults",
                "--socket",
                &socket,
                "-N",
                "-e",
                "SHOW DATABASES LIKE 'notes%'",
            ],
        );
        !files.exists() && shown.out.trim().is_empty()
    });
}

#[test]
fn a_restore_that_fails_changes_nothing() {
    let (cloud, _server, folder) = with_sql("32MiB");
    let made = sql(
        &cloud,
        &[
            "CREATE TABLE notes (text TEXT)",
            "INSERT INTO notes VALUES ('remember')",
        ],
    );
    assert_eq!(made.trim(), "done done");
    cloud.put("notes", "page.php", "<?php echo 'here';");
    let work = folder.path().join("work");
    let path = |name: &str| work.join(name).display().to_string();
    std::fs::create_dir_all(work.join("files")).unwrap();
    let pack = |name: &str, parts: &str| {
        let packed = run(
            "sh",
            &[
                "-c",
                &format!(
                    "cd '{}' && tar c {parts} | zstd -q > '{name}'",
                    work.display()
                ),
            ],
        );
        assert_eq!(packed.code, 0, "{packed:?}");
    };
    // More than the disk holds.
    let filled = run(
        "sh",
        &[
            "-c",
            &format!("head -c 40000000 /dev/urandom > '{}'", path("files/big")),
        ],
    );
    assert_eq!(filled.code, 0, "{filled:?}");
    pack("large.tar.zst", "files");
    // A database that can't be read in.
    std::fs::remove_file(work.join("files/big")).unwrap();
    let broken = format!(
        "printf 'CREATE TABLE other (a INT);\\nNONSENSE;\\n' > '{}'",
        path("database.sql")
    );
    assert_eq!(run("sh", &["-c", &broken]).code, 0);
    pack("broken.tar.zst", "files database.sql");
    let unchanged = |asked: &[&str], says: &str| {
        let refused = cloud.command(asked);
        assert!(
            refused.code == 1 && refused.err.contains(says),
            "{refused:?}"
        );
        assert_eq!(cloud.get("notes", "page.php").body, "here");
        assert_eq!(
            sql(&cloud, &["SELECT text FROM notes", "SELECT a FROM other"]).trim(),
            "remember 1146"
        );
        let left: Vec<_> = std::fs::read_dir(cloud.state.join("work"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    };
    let bin = || std::fs::read_dir(cloud.state.join("bin")).map_or(0, Iterator::count);
    unchanged(
        &["site", "restore", "notes", &path("large.tar.zst")],
        "does not fit",
    );
    unchanged(
        &["site", "restore", "notes", &path("broken.tar.zst")],
        "NONSENSE",
    );
    assert_eq!(bin(), 0);
    // The bin keeps what could not be put back, whole.
    let entry = cloud.state.join("bin/notes.w.example@20200101T000000Z");
    std::fs::create_dir_all(entry.join("site/files")).unwrap();
    std::fs::copy(work.join("database.sql"), entry.join("database.sql")).unwrap();
    for _ in 0..2 {
        unchanged(&["site", "restore", "notes", "--bin"], "NONSENSE");
        assert!(entry.join("disk.ext4").exists() && entry.join("database.sql").exists());
        assert_eq!(bin(), 1);
    }
}
