package sharedkeys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
)

const (
	// sealVersion is the only form of sealed there is.
	sealVersion = 1
	// rounds makes one guess at a token cost a fifth of a second or more.
	rounds = 600_000
	// maxRounds bounds what a changed value in the etcd can make a server do.
	maxRounds = 10_000_000
	saltBytes = 16
	keyBytes  = 32
	// purpose is authenticated with the data, so that the data cannot be used for anything else.
	purpose = "mote: keys of a cluster, 1"
)

// errDoesNotOpen means that the data was sealed with another secret or was changed since: the
// cipher cannot tell these apart.
var errDoesNotOpen = errors.New("sealed data does not open")

// sealed is the stored form: files under AES-256-GCM, with a key that PBKDF2 derives from a
// secret.
type sealed struct {
	Version int    `json:"version"`
	Rounds  int    `json:"rounds"`
	Salt    []byte `json:"salt"`
	Nonce   []byte `json:"nonce"`
	Data    []byte `json:"data"`
}

// seal encrypts files with a secret.
func seal(secret string, files map[string][]byte) ([]byte, error) {
	plain, err := json.Marshal(files)
	if err != nil {
		return nil, fmt.Errorf("encode keys: %w", err)
	}
	s := sealed{Version: sealVersion, Rounds: rounds, Salt: make([]byte, saltBytes)}
	if _, err := rand.Read(s.Salt); err != nil {
		return nil, fmt.Errorf("make salt: %w", err)
	}
	aead, err := s.cipher(secret)
	if err != nil {
		return nil, err
	}
	// Each key has a salt of its own and is used once, so no nonce is used twice.
	s.Nonce = make([]byte, aead.NonceSize())
	if _, err := rand.Read(s.Nonce); err != nil {
		return nil, fmt.Errorf("make nonce: %w", err)
	}
	s.Data = aead.Seal(nil, s.Nonce, plain, []byte(purpose))
	data, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode sealed keys: %w", err)
	}
	return data, nil
}

// unseal decrypts what seal made.
func unseal(secret string, data []byte) (map[string][]byte, error) {
	var s sealed
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("decode sealed keys: %w", err)
	}
	if s.Version != sealVersion || s.Rounds < 1 || s.Rounds > maxRounds {
		return nil, fmt.Errorf(
			"decode sealed keys: form %d with %d rounds is unknown: another version of mote wrote it", s.Version,
			s.Rounds)
	}
	aead, err := s.cipher(secret)
	if err != nil {
		return nil, err
	}
	if len(s.Nonce) != aead.NonceSize() {
		return nil, fmt.Errorf(
			"decode sealed keys: the nonce has %d bytes instead of %d: the datastore's value was changed", len(s.Nonce),
			aead.NonceSize())
	}
	plain, err := aead.Open(nil, s.Nonce, s.Data, []byte(purpose))
	if err != nil {
		return nil, errDoesNotOpen
	}
	var files map[string][]byte
	if err := json.Unmarshal(plain, &files); err != nil {
		return nil, fmt.Errorf("decode keys: %w", err)
	}
	return files, nil
}

func (s sealed) cipher(secret string) (cipher.AEAD, error) {
	key, err := pbkdf2.Key(sha256.New, secret, s.Salt, s.Rounds, keyBytes)
	if err != nil {
		return nil, fmt.Errorf("make key of the token: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	return aead, nil
}
