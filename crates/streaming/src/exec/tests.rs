use super::*;

#[test]
fn sizes_are_read_across_cuts() {
    let mut sizes = Sizes::default();
    assert_eq!(sizes.read(br#"{"Width":80,"Hei"#), []);
    assert_eq!(sizes.read(b"ght\":24}\n{\"Width\":1,\"Height\":2}\n{"), [(80, 24), (1, 2)]);
    assert_eq!(sizes.read(br#""Width":3,"Height":4}"#), [(3, 4)]);
    assert_eq!(sizes.read(b"nonsense"), []);
    assert_eq!(sizes.read(br#"{"Width":5,"Height":6}"#), [(5, 6)]);
    assert_eq!(sizes.read(&[b' '; 5000]), []);
    assert_eq!(sizes.read(br#"{"Width":7,"Height":8}"#), [(7, 8)]);
}
