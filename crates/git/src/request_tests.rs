use super::*;

fn request(repository: &str) -> Request {
    Request { repository: repository.into(), revision: String::new(), directory: String::new(), most_bytes: None }
}

fn plan(repository: &str) -> Result<Plan, Refused> {
    request(repository).plan(&[]).map(|(plan, _)| plan)
}

#[test]
fn cve_2025_1767_only_servers_can_be_named() {
    for repository in [
        "/var/lib/holdfast/pods/x/volumes/kubernetes.io~empty-dir/data",
        "file:///var/lib/holdfast",
        "file://localhost/etc",
        "file://./x",
        "./x",
        "../x",
        "x",
        "x/y.git",
        "~root/x",
        "host:path",
        "git@github.com:a/b.git",
        "ext::sh -c id",
        "ext::sh%20-c%20id",
        "ext://sh",
        "https::https://h/x",
        "https://h/ext::x",
        "fd::17/foo",
        "ssh://h/x",
        "ssh://-oProxyCommand=id/x",
        "git+ssh://h/x",
        "rsync://h/x",
        "ftp://h/x",
        "HTTPS://h/x",
        "--upload-pack=id",
        "-u",
        "",
        " https://h/x",
        "https://h/x y",
        "https://h/x\ny",
        "git://h/x\0",
        "git://h/a%0ab",
        "https://",
        "https:///x",
        "https://h",
        "https://h/",
        "http://-h/x",
        "git://-oProxyCommand=id/x",
        "git://user@h/x",
        "http://u:p@h/x",
    ] {
        let refused = plan(repository).err().unwrap_or_else(|| panic!("{repository:?} was not refused"));
        assert_eq!(refused.field, "repository", "{repository:?}: {refused}");
    }
    for repository in ["https://h/x", "http://h:8080/a/x.git", "git://h/x", "git://[::1]:9418/x", "https://u:p@h/x"] {
        assert!(plan(repository).is_ok(), "{repository}: {:?}", plan(repository).err());
    }
}

#[test]
fn local_repositories_are_those_below_an_allowed_directory() {
    let allowed = [PathBuf::from("/srv/git")];
    for (repository, below) in
        [("/srv/git/a", Some("a")), ("file:///srv/git/a/b.git", Some("a/b.git")), ("/srv/git", Some(""))]
    {
        let (_, local) = request(repository).plan(&allowed).expect("allowed");
        assert_eq!(local.map(|l| l.below), below.map(PathBuf::from), "{repository}");
    }
    for repository in ["/srv/gitx", "/srv", "/srv/git/../x", "/srv/git/a/../../../etc", "file://srv/git/a", "/etc"] {
        assert!(request(repository).plan(&allowed).is_err(), "{repository}");
    }
}

#[test]
fn cve_2024_10220_the_directory_is_below_the_volume_and_in_no_git_directory() {
    let of = |directory: &str| {
        let all = Request { directory: directory.into(), ..request("https://h/team/app.git") };
        all.plan(&[]).map(|(plan, _)| plan.directory.join("/"))
    };
    for (directory, names) in [("", "app"), (".", ""), ("./", ""), ("a", "a"), ("a/b", "a/b"), ("a//./b/", "a/b")] {
        assert_eq!(of(directory), Ok(names.into()), "{directory:?}");
    }
    for directory in [
        "..",
        "a/..",
        "../a",
        "/a",
        ".git",
        "a/.git",
        "a/.GIT",
        "a/git~1",
        ".git/hooks",
        "a\\b",
        "-a",
        "a\nb",
        "a/.g\u{200c}it",
    ] {
        assert_eq!(of(directory).err().map(|r| r.field), Some("directory"), "{directory:?}");
    }
    for repository in ["https://h/a/..", "https://h/a/.git.git", "https://h/a/-b"] {
        assert_eq!(plan(repository).err().map(|r| r.field), Some("repository"), "{repository}");
    }
    for revision in ["--upload-pack=id", "-f", "a\u{7}"] {
        let all = Request { revision: revision.into(), ..request("https://h/a") };
        assert_eq!(all.plan(&[]).err().map(|r| r.field), Some("revision"));
    }
}

#[test]
fn a_directory_is_called_as_git_calls_it() {
    for (repository, name) in [
        ("https://h/a/b.git", "b"),
        ("https://h/a/b/", "b"),
        ("https://h/a/b/.git", "b"),
        ("git://h/b.git/", "b"),
        ("/srv/x.git", "x"),
    ] {
        assert_eq!(own_name(repository), name, "{repository}");
    }
}

#[test]
fn a_password_is_not_told() {
    for repository in ["https://me:s3cret@h/x", "https://me:s3@cret@h/x", "http://s3cret@h/x", "git://s3cret@h/x"] {
        let told = format!("{:?} {} {:?}", request(repository), shown(repository), plan(repository).err());
        assert!(!told.contains("s3") && !told.contains("cret@"), "{told}");
    }
    assert_eq!(shown("https://h/a@b"), "https://h/a@b");
    let Ok(Plan { location: Location::Server { url, credentials }, .. }) = plan("https://me:s%40@h/x") else {
        panic!("it is a server");
    };
    let credentials = credentials.expect("they were given");
    assert_eq!((url.as_str(), credentials.user.as_str(), credentials.password.as_str()), ("https://h/x", "me", "s@"));
}
