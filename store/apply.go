package store

import (
	"bytes"
	"context"
	"database/sql/driver"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// writeTx is a batch being written to the file. Each proposal sees the changes of those before it.
// journal.begin sets c, rev and pageBytes.
type writeTx struct {
	c         *conn
	mode      syncMode
	pageBytes int64
	lessor    *lessor
	keys      *keyCounts
	values    *valueCache
	revs      *revisions

	rev     int64 // newest revision so far
	sub     int64 // changes in the revision being made
	changes []change
	frames  int64 // pages it writes to the log, at most
	wrote   bool
	counted bool // the key counts are saved
	// leases that this batch granted (true) and revoked (false). The lessor gets them after the
	// commit.
	leases map[int64]bool
}

// apply runs one proposal. The error it returns is an I/O error; a refusal becomes the
// proposal's error.
func (tx *writeTx) apply(p *proposal) error {
	before := len(tx.changes)
	tx.sub = 0
	err := p.apply(tx)
	if err != nil && isFault(err) {
		return err
	}
	if err != nil && (tx.sub != 0 || len(tx.changes) != before) {
		return fmt.Errorf("refused after a change was made: %w", err)
	}
	p.err = err
	if tx.sub != 0 {
		tx.rev++
		tx.sub = 0
	}
	return nil
}

func (tx *writeTx) snap() *snap {
	rev := tx.rev
	if tx.sub != 0 {
		rev++
	}
	return &snap{
		ctx:       context.Background(),
		c:         tx.c,
		rev:       rev,
		compacted: tx.revs.compacted.Load(),
		keys:      tx.keys,
		values:    tx.values,
	}
}

// exec runs a statement that changes the file.
func (tx *writeTx) exec(sql string, args ...driver.Value) error {
	tx.wrote = true
	tx.frames++
	return tx.c.exec(sql, args...)
}

func (tx *writeTx) append(r *row) error {
	if tx.sub > maxChanges {
		return ErrTooLarge
	}
	r.id = idOf(tx.rev+1, tx.sub)
	if err := tx.insert(r); err != nil {
		return err
	}
	tx.sub++
	return nil
}

// insert writes a row and makes it its key's newest.
func (tx *writeTx) insert(r *row) error {
	if err := tx.exec(
		"INSERT INTO log(id, prev, created, version, lease, sum, key, value) VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
		r.id, r.prev, r.created, r.version, r.lease, r.sum(), blob(r.key), blob(r.value)); err != nil {
		return err
	}
	tx.frames += int64(len(r.value)) / tx.pageBytes
	dead := int64(0)
	if r.dead() {
		dead = 1
	}
	if r.prev != 0 {
		if err := tx.exec("UPDATE cur SET id = ?2, dead = ?3 WHERE key = ?1", blob(r.key), r.id, dead); err != nil {
			return err
		}
	} else if err := tx.exec("INSERT INTO cur(key, id, dead) VALUES(?1, ?2, ?3)", blob(r.key), r.id, dead); err != nil {
		return err
	}
	return nil
}

// put writes a new version of a key whose newest version, if it has one, is old.
func (tx *writeTx) put(key, value []byte, lease int64, old row, had bool) error {
	rev := tx.rev + 1
	r := row{
		created: rev,
		version: 1,
		lease:   lease,
		key:     key,
		value:   value,
	}
	var prev *mvccpb.KeyValue
	if had {
		r.prev = old.id
		if !old.dead() {
			r.created, r.version = old.created, old.version+1
			var err error
			if prev, err = tx.before(old); err != nil {
				return err
			}
		}
	}
	if err := tx.append(&r); err != nil {
		return err
	}
	tx.changes = append(tx.changes, change{&mvccpb.Event{Type: mvccpb.Event_PUT, Kv: r.kv()}, prev, r})
	return nil
}

// before returns the version that watchers see as the one before a change of old: the newest of an
// earlier revision.
func (tx *writeTx) before(old row) (*mvccpb.KeyValue, error) {
	if revOf(old.id) <= tx.rev {
		return old.kv(), nil
	}
	older, ok, err := tx.snap().at(old, tx.rev)
	if err != nil || !ok {
		return nil, err
	}
	return older.kv(), nil
}

func (tx *writeTx) delete(old row) error {
	prev, err := tx.before(old)
	if err != nil {
		return err
	}
	r := row{prev: old.id, key: old.key}
	if err := tx.append(&r); err != nil {
		return err
	}
	tx.changes = append(tx.changes, change{&mvccpb.Event{Type: mvccpb.Event_DELETE,
		Kv: &mvccpb.KeyValue{Key: r.key, ModRevision: revOf(r.id)}}, prev, r})
	return nil
}

func (tx *writeTx) knowsLease(id int64) bool {
	if known, ok := tx.leases[id]; ok {
		return known
	}
	return tx.lessor.known(id)
}

func (tx *writeTx) noteLease(id int64, known bool) {
	if tx.leases == nil {
		tx.leases = map[int64]bool{}
	}
	tx.leases[id] = known
}

// checkPut refuses a put before anything is changed.
func (tx *writeTx) checkPut(r *pb.PutRequest) error {
	if r.Lease != 0 && !tx.knowsLease(r.Lease) {
		return ErrLeaseNotFound
	}
	if r.IgnoreValue || r.IgnoreLease {
		old, ok, err := tx.snap().newest(r.Key)
		if err != nil {
			return err
		}
		if !ok || old.dead() {
			return ErrKeyNotFound
		}
	}
	return nil
}

func (tx *writeTx) applyPut(r *pb.PutRequest) (*pb.PutResponse, error) {
	old, had, err := tx.snap().newest(r.Key)
	if err != nil {
		return nil, err
	}
	if (r.IgnoreValue || r.IgnoreLease) && (!had || old.dead()) {
		// It was there when the transaction was checked, and an operation before this one has
		// deleted it.
		return nil, ErrKeyNotFound
	}
	value, lease := r.Value, r.Lease
	if r.IgnoreValue {
		value = old.value
	}
	if r.IgnoreLease {
		lease = old.lease
	}
	resp := &pb.PutResponse{Header: &pb.ResponseHeader{Revision: tx.rev + 1}}
	if r.PrevKv && had && !old.dead() {
		resp.PrevKv = old.kv()
	}
	return resp, tx.put(r.Key, value, lease, old, had)
}

func (tx *writeTx) applyDelete(r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	sn := tx.snap()
	var olds []row
	// Values are read even when nobody asked: watchers get them as the previous version.
	if err := sn.each(newSpan(r.Key, r.RangeEnd), sn.rev, false, 0, func(old row) (bool, error) {
		olds = append(olds, old)
		return len(olds) <= maxChanges, nil
	}); err != nil {
		return nil, err
	}
	if tx.sub+int64(len(olds)) > maxChanges {
		return nil, ErrTooLarge
	}
	resp := &pb.DeleteRangeResponse{Header: &pb.ResponseHeader{}, Deleted: int64(len(olds))}
	for _, old := range olds {
		if r.PrevKv {
			resp.PrevKvs = append(resp.PrevKvs, old.kv())
		}
		if err := tx.delete(old); err != nil {
			return nil, err
		}
	}
	resp.Header.Revision = tx.snap().rev
	return resp, nil
}

// applyTxn decides and checks the whole transaction before it changes anything.
func (tx *writeTx) applyTxn(r *pb.TxnRequest) (*pb.TxnResponse, error) {
	path, err := comparePath(tx.snap(), r)
	if err != nil {
		return nil, err
	}
	if _, err := checkPath(tx.snap(), r, path, tx.checkPut); err != nil {
		return nil, err
	}
	resp, _, err := runPath(r, path, tx.snap, tx)
	if err != nil {
		return nil, err
	}
	resp.Header.Revision = tx.snap().rev
	return resp, nil
}

// comparePath evaluates the comparisons of a transaction and of those nested in its chosen branch,
// in order.
func comparePath(sn *snap, r *pb.TxnRequest) ([]bool, error) {
	ok := true
	for _, c := range r.Compare {
		var err error
		if ok, err = compare(sn, c); err != nil {
			return nil, err
		}
		if !ok {
			break
		}
	}
	path := []bool{ok}
	for _, op := range branch(r, ok) {
		nested := op.GetRequestTxn()
		if nested == nil {
			continue
		}
		sub, err := comparePath(sn, nested)
		if err != nil {
			return nil, err
		}
		path = append(path, sub...)
	}
	return path, nil
}

func branch(r *pb.TxnRequest, ok bool) []*pb.RequestOp {
	if ok {
		return r.Success
	}
	return r.Failure
}

func compare(sn *snap, c *pb.Compare) (bool, error) {
	keys, found, all := newSpan(c.Key, c.RangeEnd), false, true
	err := sn.each(keys, sn.rev, c.Target != pb.Compare_VALUE, 0, func(r row) (bool, error) {
		found = true
		all = compareRow(c, &r)
		return all, nil
	})
	if err != nil {
		return false, err
	}
	if !found {
		// A missing key equals the zero of every target but the value: an empty value is a value.
		return c.Target != pb.Compare_VALUE && compareRow(c, &row{}), nil
	}
	return all, nil
}

func compareRow(c *pb.Compare, r *row) bool {
	var d int
	switch c.Target {
	case pb.Compare_VALUE:
		d = bytes.Compare(r.value, c.GetValue())
	case pb.Compare_CREATE:
		d = cmp64(r.created, c.GetCreateRevision())
	case pb.Compare_MOD:
		d = cmp64(revOf(r.id), c.GetModRevision())
	case pb.Compare_VERSION:
		d = cmp64(r.version, c.GetVersion())
	case pb.Compare_LEASE:
		d = cmp64(r.lease, c.GetLease())
	}
	switch c.Result {
	case pb.Compare_EQUAL:
		return d == 0
	case pb.Compare_NOT_EQUAL:
		return d != 0
	case pb.Compare_GREATER:
		return d > 0
	case pb.Compare_LESS:
		return d < 0
	}
	return true
}

func cmp64(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// checkPath checks the operations a transaction will run and tells how many nested transactions
// that covers.
func checkPath(sn *snap, r *pb.TxnRequest, path []bool, checkPut func(*pb.PutRequest) error) (int, error) {
	n := 0
	for _, op := range branch(r, path[0]) {
		var err error
		switch v := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
			switch rev := v.RequestRange.Revision; {
			case rev > sn.rev:
				err = ErrFutureRevision
			case rev != 0 && rev < sn.compacted:
				// Negative revisions too, which outside of transactions mean the present.
				err = ErrCompacted
			}
		case *pb.RequestOp_RequestPut:
			err = checkPut(v.RequestPut)
		case *pb.RequestOp_RequestTxn:
			var sub int
			sub, err = checkPath(sn, v.RequestTxn, path[1+n:], checkPut)
			n += sub + 1
		}
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}

// runPath runs the chosen operations. tx is nil for a transaction that only reads.
func runPath(r *pb.TxnRequest, path []bool, view func() *snap, tx *writeTx) (*pb.TxnResponse, int, error) {
	resp := &pb.TxnResponse{Header: &pb.ResponseHeader{}, Succeeded: path[0]}
	n := 0
	for _, op := range branch(r, path[0]) {
		out := &pb.ResponseOp{}
		switch v := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
			got, err := view().rangeKeys(v.RequestRange, true)
			if err != nil {
				return nil, 0, err
			}
			out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: got}
		case *pb.RequestOp_RequestPut:
			got, err := tx.applyPut(v.RequestPut)
			if err != nil {
				return nil, 0, err
			}
			out.Response = &pb.ResponseOp_ResponsePut{ResponsePut: got}
		case *pb.RequestOp_RequestDeleteRange:
			got, err := tx.applyDelete(v.RequestDeleteRange)
			if err != nil {
				return nil, 0, err
			}
			out.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: got}
		case *pb.RequestOp_RequestTxn:
			got, sub, err := runPath(v.RequestTxn, path[1+n:], view, tx)
			if err != nil {
				return nil, 0, err
			}
			n += sub + 1
			out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: got}
		}
		resp.Responses = append(resp.Responses, out)
	}
	return resp, n, nil
}

// onlyReads reports whether every operation of a transaction is a range.
func onlyReads(r *pb.TxnRequest) bool {
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if op.GetRequestRange() == nil {
				return false
			}
		}
	}
	return true
}
