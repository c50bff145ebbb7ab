//! What a container is called.

use super::*;

fn called(args: &str) -> String {
    request(&env_with(&[("CNI_ARGS", args)]), &config()).container_name
}

#[test]
fn a_pod_is_called_by_its_namespace_too_and_others_as_they_are() {
    for (args, name) in [
        ("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=7", "shop/web-0"),
        ("K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=test", "test/web-0"),
        // podman's.
        ("IgnoreUnknown=1;K8S_POD_NAME=web-0", "web-0"),
        ("K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=", "web-0"),
        ("K8S_POD_NAMESPACE=shop", ""),
        ("", ""),
    ] {
        assert_eq!(called(args), name, "{args}");
    }
}

#[test]
fn a_pods_name_that_is_too_long_with_its_namespace_keeps_namespace_and_end() {
    let namespace = "n".repeat(63);
    let args = |name: &str| format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}");
    let fits = "a".repeat(191);
    assert_eq!(called(&args(&fits)), format!("{namespace}/{fits}"));
    for (name, end) in [
        (format!("{}-0", "a".repeat(190)), format!("{}-0", "a".repeat(186))),
        (format!("{}-1", "a".repeat(251)), format!("{}-1", "a".repeat(186))),
    ] {
        let called = called(&args(&name));
        assert_eq!((called.len(), called), (255, format!("{namespace}/...{end}")));
    }
    // No pod's, and refused by netmaster.
    let name = format!("K8S_POD_NAMESPACE={};K8S_POD_NAME=\u{fc}b", "n".repeat(300));
    assert!(called(&name).starts_with("nnn"));
}
