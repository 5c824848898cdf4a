//! A site's disk: its quota, a full one, backups and restores.

use std::{
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    time::Duration,
};

use super::{Cloud, Load};
use crate::harness::{run, until};

#[test]
fn a_full_disk_is_told_and_the_neighbours_notice_nothing() {
    let cloud = Cloud::start(
        "[sites.hoarder]\n[sites.alice]\n",
        "[groups.default]\ndisk = \"16MiB\"\n",
    );
    cloud.get("hoarder", "");
    cloud.get("alice", "");
    let load = Load::on(cloud.nuage(), "alice", 1);
    let filled = cloud.command(&[
        "site",
        "exec",
        "hoarder",
        "--",
        "sh",
        "-c",
        "dd if=/dev/zero of=big bs=64k; rm -f x; dd if=/dev/zero of=rest bs=1k",
    ]);
    assert!(filled.err.contains("No space left"), "{filled:?}");
    cloud.put(
        "alice",
        "ok.php",
        "<?php echo file_put_contents('new', str_repeat('x', 1000));",
    );
    assert_eq!(cloud.get("alice", "ok.php").body, "1000");
    until("it is noticed", || {
        cloud
            .command(&["site", "stats", "hoarder"])
            .out
            .contains("disk is full")
    });
    // A script that dies of it is answered for.
    let exec = cloud.command(&["site", "exec", "hoarder", "--", "sh", "-c", "rm rest; echo '<?php if (!@file_put_contents(\"x\", str_repeat(\"x\", 1000000))) { http_response_code(500); echo \"raw failure\"; }' > try.php; dd if=/dev/zero of=rest bs=1k 2>/dev/null"]);
    assert!(exec.code >= 0);
    let full = cloud.get("hoarder", "try.php");
    assert_eq!(full.status, 507, "{full:?}");
    assert!(full.body.contains("disk is full"), "{full:?}");
    // More room without a restart of anything.
    let folder = &cloud.nuage().folder;
    let config = std::fs::read_to_string(folder.config())
        .unwrap()
        .replace("16MiB", "64MiB");
    folder.write("nuage.toml", &config);
    cloud.nuage().signal("HUP");
    until("it has room again", || {
        cloud.command(&["site", "restart", "hoarder"]);
        cloud.get("hoarder", "try.php").status == 200
    });
    assert_eq!(load.stop(), Vec::<String>::new());
}

#[test]
fn a_disk_is_made_once_however_many_ask_for_it() {
    let cloud = Cloud::start("[sites.alice]\n", "[groups.default]\ndisk = \"16MiB\"\n");
    let socket = cloud.state.join("control.sock").display().to_string();
    let prepare = move || {
        let url = "http://control/v1/sites/alice.w.example/prepare";
        let asked = ["-s", "-X", "POST", "-w", "%{http_code}", "--unix-socket"];
        run("curl", &[&asked[..], &[&*socket, url]].concat()).out
    };
    let asking: Vec<_> = (0..8)
        .map(|_| std::thread::spawn(prepare.clone()))
        .collect();
    assert_eq!(cloud.get("alice", "").status, 200);
    for asked in asking {
        assert_eq!(asked.join().unwrap(), "200");
    }
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let folder = cloud.state.join("sites").display().to_string();
    let disks = mounts.lines().filter(|line| line.contains(&folder));
    assert_eq!(disks.count(), 1, "{mounts}");
    let image = cloud.state.join("disks/w.example/alice.ext4");
    let mut on_loop = run("losetup", &["-j", image.to_str().unwrap()]).out;
    on_loop.retain(|octet| octet == '\n');
    assert_eq!(on_loop, "\n", "one loop device");
}

#[test]
fn a_backup_is_of_one_moment_and_comes_back_whole() {
    let cloud = Cloud::start("[sites.alice]\n", "");
    cloud.get("alice", "");
    cloud.put(
        "alice",
        "index.php",
        "<?php echo 'first ', count(glob('data/*'));",
    );
    // A program that always writes two files together.
    cloud.put("alice", "pairs.php", "<?php ignore_user_abort(true); set_time_limit(60); @mkdir('data'); for ($i = 0; $i < 300000; $i++) { file_put_contents(\"data/a\", 'x', FILE_APPEND); file_put_contents(\"data/b\", 'x', FILE_APPEND); }");
    let uid = cloud
        .command(&["site", "exec", "alice", "--", "id", "-u"])
        .out;
    let own = uid.trim();
    assert_eq!(
        run(
            "chown",
            &[
                "-R",
                &format!("{own}:{own}"),
                cloud.files("alice").to_str().unwrap()
            ]
        )
        .code,
        0
    );
    let address = cloud.nuage().http[0];
    let mut writer = std::process::Command::new("curl")
        .args([
            "-s",
            "-H",
            "Host: alice.w.example",
            &format!("http://{address}/pairs.php"),
        ])
        .spawn()
        .unwrap();
    until("it writes", || cloud.files("alice").join("data/b").exists());
    let file = cloud.state.join("alice.tar.zst");
    let backup = cloud.command(&["site", "backup", "alice", "-o", file.to_str().unwrap()]);
    assert_eq!(backup.code, 0, "{backup:?}");
    writer.kill().unwrap();
    writer.wait().unwrap();
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds the site's secrets");
    let listed = run(
        "sh",
        &["-c", &format!("zstd -dc {} | tar t", file.display())],
    );
    assert!(listed.out.contains("files/index.php"), "{listed:?}");
    let length = |name: &str| {
        let read = format!(
            "zstd -dc {} | tar xO files/data/{name} | wc -c",
            file.display()
        );
        run("sh", &["-c", &read]).out.trim().parse::<i32>().unwrap()
    };
    let (a, b) = (length("a"), length("b"));
    assert!(a > 0 && (0..=1).contains(&(a - b)), "{a} {b}");

    cloud.put("alice", "index.php", "<?php echo 'second';");
    assert_eq!(cloud.get("alice", "").body, "second");
    let restored = cloud.command(&["site", "restore", "alice", file.to_str().unwrap()]);
    assert_eq!(restored.code, 0, "{restored:?}");
    assert_eq!(cloud.get("alice", "").body, "first 2");
    let wrong = cloud.command(&["site", "restore", "alice", "/etc/hostname"]);
    assert_eq!(wrong.code, 1, "{wrong:?}");
    assert_eq!(
        cloud.get("alice", "").body,
        "first 2",
        "nothing is lost on a bad backup"
    );
    let back = cloud.command(&["site", "restore", "alice", "--bin"]);
    assert_eq!(back.code, 0, "{back:?}");
    assert_eq!(cloud.get("alice", "").body, "second");
}

#[test]
fn a_site_comes_back_onto_its_disk_holes_and_second_names_and_all() {
    let cloud = Cloud::start("[sites.alice]\n", "[groups.default]\ndisk = \"32MiB\"\n");
    cloud.get("alice", "");
    // Ten times the disk by its length, and one file under two names that fits only once.
    let made = cloud.command(&[
        "site", "exec", "alice", "--", "sh", "-c",
        "truncate -s 320M holes && printf end >> holes && head -c 17000000 /dev/urandom > one && ln one two",
    ]);
    assert_eq!(made.code, 0, "{made:?}");
    let file = cloud.state.join("alice.tar.zst");
    let backup = cloud.command(&["site", "backup", "alice", "-o", file.to_str().unwrap()]);
    assert_eq!(backup.code, 0, "{backup:?}");
    let changed = cloud.command(&["site", "exec", "alice", "--", "rm", "holes", "one", "two"]);
    assert_eq!(changed.code, 0, "{changed:?}");
    let restored = cloud.command(&["site", "restore", "alice", file.to_str().unwrap()]);
    assert_eq!(restored.code, 0, "{restored:?}");
    let found = cloud.command(&[
        "site",
        "exec",
        "alice",
        "--",
        "sh",
        "-c",
        "tail -c 3 holes; stat -c ' %s %h' holes one two; cmp one two && touch new && echo its own",
    ]);
    assert_eq!(
        found.out, "end 335544323 1\n 17000000 2\n 17000000 2\nits own\n",
        "{found:?}"
    );
}

#[test]
fn who_leaves_during_a_backup_leaves_no_frozen_site() {
    let cloud = Cloud::start("[sites.alice]\n", "");
    cloud.get("alice", "");
    let socket = cloud.state.join("control.sock");
    for wait in [0, 1, 2, 4, 8, 12, 16, 20, 25, 30, 40, 50, 75, 100] {
        let mut asking = UnixStream::connect(&socket).unwrap();
        asking
            .write_all(b"GET /v1/sites/alice.w.example/backup HTTP/1.1\r\nHost: control\r\n\r\n")
            .unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        drop(asking);
        until("it is awake again", || {
            cloud.get("alice", "").status == 200 && cloud.state_of("alice") == "awake"
        });
    }
    let file = cloud.state.join("alice.tar.zst");
    let backup = cloud.command(&["site", "backup", "alice", "-o", file.to_str().unwrap()]);
    assert_eq!(backup.code, 0, "{backup:?}");
}
