use super::*;

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn secret(change: impl FnOnce(&mut Data)) -> Secret {
    let (_, material) = testing::intermediate(None);
    let mut data = Data::new();
    material.write([CERTIFICATE, KEY, CHAIN, ROOTS], &mut data);
    change(&mut data);
    Secret { data: Some(data), ..Secret::default() }
}

fn put(key: &'static str, value: &[u8]) -> impl FnOnce(&mut Data) {
    let value = ByteString(value.to_vec());
    move |data| drop(data.insert(key.to_owned(), value))
}

#[test]
fn plugged_material_must_fit_together() {
    assert!(Material::plugged(&secret(|_| {}), &domain()).is_ok());
    assert!(Material::plugged(&Secret::default(), &domain()).is_err());
    for key in [CERTIFICATE, KEY, ROOTS] {
        let without = Material::plugged(&secret(|data| drop(data.remove(key))), &domain());
        assert!(matches!(without, Err(MaterialError::Missing(name)) if name == key), "{key}");
        for junk in [b"junk".as_slice(), b"", &[0xff], &[b'a'; MAX_BYTES + 1]] {
            assert!(Material::plugged(&secret(put(key, junk)), &domain()).is_err(), "{key}");
        }
    }
    // Somebody else's root, and somebody else's key.
    let other = Material::create(&domain(), OffsetDateTime::now_utc()).unwrap();
    let foreign_root = Material::plugged(&secret(put(ROOTS, other.roots.as_bytes())), &domain());
    assert!(matches!(foreign_root, Err(MaterialError::Authority(AuthorityError::Chain))), "{foreign_root:?}");
    let foreign_key = Material::plugged(&secret(put(KEY, other.key.as_bytes())), &domain());
    assert!(matches!(foreign_key, Err(MaterialError::Authority(AuthorityError::OtherKey))));
}
