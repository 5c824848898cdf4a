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
            &format!("--socket={path}/socket"),
            &format!("--pid-file={path}/pid"),
            &format!("--port={port}"),
            "--bind-address=0.0.0.0",
            "--skip-name-resolve",
        ],
    );
    (server, folder)
}

#[test]
fn wordpress_with_its_own_database() {
    let port = free_port();
    let (_server, folder) = mariadb(port);
    let cloud = Cloud::start(
        "[sites.blog]\ndatabase = true\n[sites.thief]\ndatabase = true\n[sites.plain]\n",
        &format!(
            "[database]\nsocket = \"{}\"\nport = {port}\n[groups.default]\ndisk = \"256MiB\"\n",
            folder.path().join("socket").display()
        ),
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

    // Nobody else has this database, nor without the password.
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
    cloud.put("thief", "steal.php", &format!("<?php mysqli_report(MYSQLI_REPORT_OFF); echo @mysqli_connect('{}', '{}', '{}', '{}', {port}) ? 'stolen' : 'refused';", words[3], words[1], words[2], words[0]));
    assert_eq!(cloud.get("thief", "steal.php").body, "refused");
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
