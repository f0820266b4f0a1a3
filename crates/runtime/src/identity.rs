//! Which numeric user a container runs as: pod settings first, then the image's `USER`, read against the image's own
//! `/etc/passwd` and `/etc/group`.
use crate::{contract::User, launch::Identity, wire::Failure};

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut f = line.split(':');
        let (name, _password, uid, gid, _comment, home) =
            (f.next()?, f.next()?, f.next()?, f.next()?, f.next()?, f.next().unwrap_or(""));
        Some(Account { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

/// Name, number and member list of each group.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut f = line.split(':');
        let (name, _password, gid) = (f.next()?, f.next()?, f.next()?);
        Some((name, gid.parse().ok()?, f.next().unwrap_or("")))
    })
}

/// Refuses what `must_not_be_root` forbids, as far as it can be told without the image's files.
pub(crate) fn check_not_root(user: &User, image_user: &str) -> Result<(), Failure> {
    if !user.must_not_be_root {
        return Ok(());
    }
    let name = image_user.split(':').next().unwrap_or("");
    match (user.uid, name) {
        (Some(0), _) | (None, "") => Err(Failure::RootRefused),
        (Some(_), _) => Ok(()),
        (None, name) => match name.parse::<u32>() {
            Ok(0) => Err(Failure::RootRefused),
            Ok(_) => Ok(()),
            Err(_) => Err(Failure::UserUnverifiable(name.to_owned())),
        },
    }
}

/// The numeric identity. A missing file is given as empty text.
pub(crate) fn resolve(user: &User, image_user: &str, passwd: &str, group: &str) -> Result<Identity, Failure> {
    check_not_root(user, image_user)?;
    let (image_name, image_group) = image_user.split_once(':').unwrap_or((image_user, ""));
    let (uid, account) = match user.uid {
        Some(uid) => (uid, accounts(passwd).find(|a| a.uid == uid)),
        None if image_name.is_empty() => (0, accounts(passwd).find(|a| a.uid == 0)),
        // A name wins over the same digits as a number, as in the shadow tools.
        None => match (accounts(passwd).find(|a| a.name == image_name), image_name.parse::<u32>()) {
            (Some(a), _) => (a.uid, Some(a)),
            (None, Ok(uid)) => (uid, accounts(passwd).find(|a| a.uid == uid)),
            (None, Err(_)) => {
                return Err(Failure::Other(format!(
                    "unable to find user {image_name}: no matching entries in passwd file"
                )));
            }
        },
    };
    let gid = match user.gid {
        Some(gid) => gid,
        // The image's group belongs to the image's user, not to one the pod asked for.
        None if user.uid.is_none() && !image_group.is_empty() => {
            match (groups(group).find(|g| g.0 == image_group), image_group.parse()) {
                (Some(g), _) => g.1,
                (None, Ok(gid)) => gid,
                (None, Err(_)) => {
                    let text = format!("unable to find group {image_group}: no matching entries in group file");
                    return Err(Failure::Other(text));
                }
            }
        }
        None => account.as_ref().map_or(0, |a| a.gid),
    };
    let mut all = vec![gid];
    all.extend(&user.supplemental_groups);
    if let Some(name) = account.as_ref().map(|a| a.name).filter(|_| user.merge_image_groups) {
        all.extend(groups(group).filter(|g| g.2.split(',').any(|m| m == name)).map(|g| g.1));
    }
    let mut seen = std::collections::HashSet::new();
    all.retain(|g| seen.insert(*g));
    let home = account.map_or("/", |a| if a.home.is_empty() { "/" } else { a.home }).to_owned();
    Ok(Identity { uid, gid, groups: all, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken line\nweb:x:33:34:web:/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nstaff:x:50:other,web\nlogs:x:51:web\n";

    fn run(user: User, image: &str) -> Result<(u32, u32, Vec<u32>, String), Failure> {
        resolve(&user, image, PASSWD, GROUP).map(|i| (i.uid, i.gid, i.groups, i.home))
    }

    #[test]
    fn users_resolve() {
        let user = |uid, gid| User { uid, gid, ..User::default() };
        let cases = [
            ("nothing said", user(None, None), "", (0, 0, vec![0], "/root")),
            ("a name", user(None, None), "web", (33, 34, vec![34], "/var/www")),
            ("a number with an account", user(None, None), "33", (33, 34, vec![34], "/var/www")),
            ("a number without", user(None, None), "1234", (1234, 0, vec![0], "/")),
            ("name and group", user(None, None), "web:staff", (33, 50, vec![50], "/var/www")),
            ("numbers", user(None, None), "7:8", (7, 8, vec![8], "/")),
            (
                "the pod's user drops the image's group",
                user(Some(33), None),
                "root:staff",
                (33, 34, vec![34], "/var/www"),
            ),
            ("the pod's user and group", user(Some(1), Some(2)), "web", (1, 2, vec![2], "/")),
            ("only the pod's group", user(None, Some(9)), "web:staff", (33, 9, vec![9], "/var/www")),
        ];
        for (what, user, image, (uid, gid, groups, home)) in cases {
            assert_eq!(run(user, image), Ok((uid, gid, groups, home.to_owned())), "{what}");
        }
    }

    #[test]
    fn supplemental_groups_merge_without_doubles() {
        let user = User { supplemental_groups: vec![50, 99, 99], merge_image_groups: true, ..User::default() };
        assert_eq!(run(user.clone(), "web").unwrap().2, [34, 50, 99, 51]);
        assert_eq!(run(User { merge_image_groups: false, ..user }, "web").unwrap().2, [34, 50, 99]);
    }

    #[test]
    fn root_is_refused_where_it_must_not_be() {
        let user = |uid| User { uid, must_not_be_root: true, ..User::default() };
        assert_eq!(run(user(None), ""), Err(Failure::RootRefused));
        assert_eq!(run(user(None), "0:5"), Err(Failure::RootRefused));
        assert_eq!(run(user(Some(0)), "web"), Err(Failure::RootRefused));
        assert_eq!(run(user(None), "web"), Err(Failure::UserUnverifiable("web".to_owned())));
        assert!(run(user(None), "33").is_ok());
        assert!(run(user(Some(5)), "root").is_ok());
    }

    #[test]
    fn unknown_names_say_so() {
        assert!(matches!(run(User::default(), "ghost"), Err(Failure::Other(t)) if t.contains("ghost")));
        assert!(matches!(run(User::default(), "web:ghosts"), Err(Failure::Other(t)) if t.contains("ghosts")));
    }
}
